//! The kinds of machine that QEMU emulates for Xen. They differ in the number of processors, the
//! IOMMU, the disks and the cards.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::bail;

/// A kind of machine. A scenario selects it with `# machine: NAME`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum MachineKind {
    /// Two processors, and no IOMMU.
    #[default]
    Default,
    /// Three processors, two of them for guests, and no IOMMU.
    ThreeProcessors,
    /// Three processors, two of them for Dom0, and no IOMMU.
    TwoForDom0,
    /// The default machine, on which Dom0 boots as Debian does: systemd with the units of Debian's
    /// packages, and xen-virtiod installed from its package. A disk has the system of a guest.
    Systemd,
    /// The default machine, on which Dom0's disks offer VIRTIO_F_ACCESS_PLATFORM.
    DiskPlatform,
    /// An Intel IOMMU, which Xen drives, with Dom0's disks behind it, and cards to pass through.
    IntelIommu,
    /// An AMD IOMMU, otherwise like `IntelIommu`.
    AmdIommu,
}

impl MachineKind {
    /// All kinds, in the order in which the lab boots them.
    pub(crate) const ALL: [MachineKind; 7] = [
        MachineKind::Default,
        MachineKind::ThreeProcessors,
        MachineKind::TwoForDom0,
        MachineKind::Systemd,
        MachineKind::DiskPlatform,
        MachineKind::IntelIommu,
        MachineKind::AmdIommu,
    ];

    /// Returns the name that `# machine:` and `--machine` take.
    pub(crate) fn name(self) -> &'static str {
        match self {
            MachineKind::Default => "default",
            MachineKind::ThreeProcessors => "three-processors",
            MachineKind::TwoForDom0 => "two-for-dom0",
            MachineKind::Systemd => "systemd",
            MachineKind::DiskPlatform => "disk-platform",
            MachineKind::IntelIommu => "intel-iommu",
            MachineKind::AmdIommu => "amd-iommu",
        }
    }

    /// Returns the number of processors: those of Dom0 and, after them, those of guests.
    pub(crate) fn processors(self) -> u32 {
        match self {
            MachineKind::ThreeProcessors | MachineKind::TwoForDom0 => 3,
            _ => 2,
        }
    }

    /// Returns the number of processors that Dom0 has for itself.
    pub(crate) fn dom0_processors(self) -> u32 {
        match self {
            MachineKind::TwoForDom0 => 2,
            _ => 1,
        }
    }

    /// Returns QEMU's options for the chipset and the IOMMU, which must precede other devices.
    pub(super) fn chipset(self) -> &'static [&'static str] {
        match self {
            MachineKind::Default
            | MachineKind::ThreeProcessors
            | MachineKind::TwoForDom0
            | MachineKind::DiskPlatform => &["-machine", "q35"],
            // udev loads a driver for every device, so the machine has none that the lab ignores.
            MachineKind::Systemd => &["-machine", "q35,sata=off,smbus=off,i8042=off"],
            // Interrupt remapping needs QEMU's own I/O APIC instead of KVM's.
            MachineKind::IntelIommu => &[
                "-machine",
                "q35,kernel-irqchip=split",
                "-device",
                "intel-iommu,intremap=on,device-iotlb=on",
            ],
            MachineKind::AmdIommu => {
                &["-machine", "q35,kernel-irqchip=split", "-device", "amd-iommu,intremap=on"]
            }
        }
    }

    /// Returns the init of Dom0's root file system.
    pub(crate) fn init(self) -> Init {
        match self {
            MachineKind::Systemd => Init::Systemd,
            _ => Init::Lab,
        }
    }

    /// Returns how Dom0's disks access memory.
    pub(super) fn disk_access(self) -> Access {
        match self {
            MachineKind::Default
            | MachineKind::ThreeProcessors
            | MachineKind::TwoForDom0
            | MachineKind::Systemd => Access::Bypass,
            MachineKind::DiskPlatform | MachineKind::IntelIommu | MachineKind::AmdIommu => {
                Access::Platform
            }
        }
    }

    /// Returns the cards that Dom0 can pass through to a guest.
    pub(super) fn spare_cards(self) -> &'static [SpareCard] {
        match self {
            MachineKind::Default
            | MachineKind::ThreeProcessors
            | MachineKind::TwoForDom0
            | MachineKind::Systemd
            | MachineKind::DiskPlatform => &[],
            MachineKind::IntelIommu | MachineKind::AmdIommu => &SPARE_CARDS,
        }
    }
}

impl fmt::Display for MachineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for MachineKind {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<MachineKind> {
        match MachineKind::ALL.into_iter().find(|machine| machine.name() == name) {
            Some(machine) => Ok(machine),
            None => {
                let names = MachineKind::ALL.map(MachineKind::name).join(", ");
                bail!("unknown machine {name}: machines are {names}")
            }
        }
    }
}

/// The init of Dom0's root file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Init {
    /// The lab's own script, `dom0/init`.
    Lab,
    /// systemd, which starts `dom0/lab.service` and the units of Debian's packages.
    Systemd,
}

impl Init {
    /// Returns options for Dom0's kernel. `dom0/initrd-init` reads `lab.init`, systemd the other.
    pub(super) fn options(self) -> &'static str {
        match self {
            Init::Lab => "",
            Init::Systemd => " lab.init=systemd systemd.wants=lab.service",
        }
    }

    /// Returns the maximum time that Xen and Dom0 take until xen-virtiod runs: ten times the usual
    /// time under emulation.
    pub(crate) fn limit(self) -> Duration {
        match self {
            Init::Lab => Duration::from_secs(180),
            Init::Systemd => Duration::from_secs(600),
        }
    }
}

/// How a virtio device of QEMU's accesses memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// The device bypasses the platform's IOMMU, if any: QEMU's default.
    Bypass,
    /// The device accesses memory as any other device of the platform does, and offers
    /// VIRTIO_F_ACCESS_PLATFORM.
    Platform,
}

impl Access {
    /// Returns properties for QEMU's `-device`. Only a modern device, with VIRTIO_F_VERSION_1, can
    /// offer VIRTIO_F_ACCESS_PLATFORM.
    pub(super) fn options(self) -> &'static str {
        match self {
            Access::Bypass => "iommu_platform=off",
            Access::Platform => "iommu_platform=on,disable-legacy=on",
        }
    }
}

/// A virtio-blk-pci card that Dom0 does not use itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct SpareCard {
    /// The serial number of its disk.
    pub(super) serial: &'static str,
    /// How it accesses memory.
    pub(super) access: Access,
    /// Its slot on the root bus, above those that QEMU assigns by itself.
    pub(super) slot: u8,
}

/// Two cards that differ only in how they access memory.
const SPARE_CARDS: [SpareCard; 2] = [
    SpareCard { serial: "platform", access: Access::Platform, slot: 0x10 },
    SpareCard { serial: "bypass", access: Access::Bypass, slot: 0x11 },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_names_parse_back() {
        for machine in MachineKind::ALL {
            assert_eq!(machine.to_string().parse::<MachineKind>().unwrap(), machine);
        }
        assert_eq!(MachineKind::default().name(), "default");
        let error = "pdp-11".parse::<MachineKind>().unwrap_err().to_string();
        assert!(error.contains("pdp-11") && error.contains("amd-iommu"), "{error}");
    }

    #[test]
    fn spare_cards_differ_in_access_and_slot() {
        let [platform, bypass] = SPARE_CARDS;
        assert_ne!(platform.access, bypass.access);
        assert_ne!(platform.slot, bypass.slot);
    }
}
