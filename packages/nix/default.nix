# A recipe for Nix: the daemon, and the guest's module for a kernel. Nobody has built it on NixOS.
#     nix-build packages/nix -A daemon
#     boot.extraModulePackages =
#       [ ((import ./packages/nix { inherit pkgs; }).module config.boot.kernelPackages.kernel) ];
{ pkgs ? import <nixpkgs> { } }:

let
  source = pkgs.lib.fileset.toSource {
    root = ../..;
    fileset = pkgs.lib.fileset.gitTracked ../..;
  };
  version = "0.1.0";
in
{
  daemon = pkgs.rustPlatform.buildRustPackage {
    pname = "xen-virtiod";
    inherit version;
    src = source;
    cargoLock.lockFile = ../../Cargo.lock;
    cargoBuildFlags = [ "-p" "xen-virtiod" ];
    # The tests need more files and threads than the sandbox has.
    doCheck = false;
    postInstall = ''
      cargo run --locked -p command-line --features documents -- \
        backend/virtiod/xen-virtiod.toml documents
      install -D -m 644 -t $out/share/man/man8 documents/*.8
      install -D -m 644 -t $out/share/man/man5 documents/*.5
      for unit in backend/virtiod/*.service; do
        install -D -m 644 -t $out/lib/systemd/system $unit
      done
      substituteInPlace $out/lib/systemd/system/*.service \
        --replace-fail /usr/local/sbin $out/bin
    '';
  };

  module = kernel: pkgs.stdenv.mkDerivation {
    pname = "virtio-msg-xen";
    inherit version;
    src = source;
    nativeBuildInputs = kernel.moduleBuildDependencies ++ [ pkgs.rustc ];
    makeFlags = [
      "-C"
      "guest-shim/linux"
      "KDIR=${kernel.dev}/lib/modules/${kernel.modDirVersion}/build"
      "RUST_SRC=${pkgs.rustPlatform.rustLibSrc}"
      "OUT=/build/out"
    ];
    buildFlags = [ "module" ];
    installPhase = ''
      install -D -m 644 -t $out/lib/modules/${kernel.modDirVersion}/updates /build/out/virtio_msg_xen.ko
    '';
  };
}
