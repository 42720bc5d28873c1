//! Whether QEMU can use KVM. Xen needs SVM or VMX itself: a `/dev/kvm` that does not pass them on
//! to the machine in QEMU is of no use.

use std::fs::{self, File};

/// How QEMU runs the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accel {
    /// On the processor.
    Kvm,
    /// By emulation; works everywhere.
    Tcg,
}

impl Accel {
    /// What this host allows, and a line that says why.
    pub(crate) fn detect() -> (Accel, &'static str) {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let kvm = File::options().read(true).write(true).open("/dev/kvm").is_ok();
        choose(&cpuinfo, kvm)
    }

    /// QEMU's options.
    pub(crate) fn options(self) -> &'static [&'static str] {
        match self {
            Accel::Kvm => &["-accel", "kvm", "-cpu", "host"],
            // Emulated MWAIT refuses hints that Xen gives, and SVM reports RDTSCP wrongly.
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
            (Accel::Tcg, "QEMU emulates the processor (TCG): it offers neither SVM nor VMX")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_needs_the_device_and_the_processors_flag() {
        let with = "processor : 0\nflags\t\t: fpu svm lm\n";
        let without = "processor : 0\nflags\t\t: fpu vmmcall lm\n";
        assert_eq!(choose(with, true).0, Accel::Kvm);
        assert_eq!(choose(with, false).0, Accel::Tcg);
        assert_eq!(choose(without, true).0, Accel::Tcg);
        assert_eq!(choose("", true).0, Accel::Tcg);
    }
}
