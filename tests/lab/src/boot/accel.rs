//! Decides whether QEMU uses KVM. Xen needs SVM or VMX itself, so `/dev/kvm` is useful only if it
//! can pass one of them on to the machine in QEMU.

use std::fs::{self, File};

/// How QEMU runs the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accel {
    /// On the host's processor, through KVM.
    Kvm,
    /// By emulation; works on every host.
    Tcg,
}

impl Accel {
    /// Returns the fastest mode that this host supports, and a line that gives the reason.
    pub(crate) fn detect() -> (Accel, &'static str) {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let kvm = File::options().read(true).write(true).open("/dev/kvm").is_ok();
        choose(&cpuinfo, kvm)
    }

    /// Returns QEMU's options for this mode.
    pub(crate) fn options(self) -> &'static [&'static str] {
        match self {
            Accel::Kvm => &["-accel", "kvm", "-cpu", "host"],
            // QEMU's MWAIT rejects hints that Xen passes, and its SVM reports RDTSCP wrongly.
            Accel::Tcg => &["-accel", "tcg,thread=multi", "-cpu", "EPYC,+svm,-monitor,-rdtscp"],
        }
    }
}

fn choose(cpuinfo: &str, kvm_opens: bool) -> (Accel, &'static str) {
    let nested = cpuinfo
        .lines()
        .find(|line| line.starts_with("flags"))
        .is_some_and(|line| line.split_whitespace().any(|flag| flag == "svm" || flag == "vmx"));
    match (nested, kvm_opens) {
        (true, true) => {
            (Accel::Kvm, "QEMU uses KVM: the processor has SVM or VMX, and /dev/kvm opens")
        }
        (true, false) => (Accel::Tcg, "QEMU emulates the processor (TCG): /dev/kvm does not open"),
        (false, _) => {
            (Accel::Tcg, "QEMU emulates the processor (TCG): the host has neither SVM nor VMX")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_needs_the_device_and_the_processor_flag() {
        let with = "processor : 0\nflags\t\t: fpu svm lm\n";
        let without = "processor : 0\nflags\t\t: fpu vmmcall lm\n";
        assert_eq!(choose(with, true).0, Accel::Kvm);
        assert_eq!(choose(with, false).0, Accel::Tcg);
        assert_eq!(choose(without, true).0, Accel::Tcg);
        assert_eq!(choose("", true).0, Accel::Tcg);
    }
}
