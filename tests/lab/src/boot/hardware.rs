//! The machines that the lab can be: what QEMU gives Xen beside processors of one kind and memory.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::bail;

/// A machine. A scenario names its own as `# machine: NAME`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum MachineKind {
    /// Two processors, and no IOMMU.
    #[default]
    Default,
    /// A processor more, for guests.
    ThreeProcessors,
    /// As the default one, and Dom0 boots as Debian does: systemd, with the units of Debian's
    /// packages, and xen-virtiod installed as README says.
    Systemd,
    /// As the default one, and Dom0's disks say VIRTIO_F_ACCESS_PLATFORM.
    DiskPlatform,
    /// An Intel IOMMU, which Xen drives, with Dom0's disks behind it, and cards to pass through.
    IntelIommu,
    /// The same with one of AMD's.
    AmdIommu,
}

impl MachineKind {
    /// All of them.
    pub(crate) const ALL: [MachineKind; 6] = [
        MachineKind::Default,
        MachineKind::ThreeProcessors,
        MachineKind::Systemd,
        MachineKind::DiskPlatform,
        MachineKind::IntelIommu,
        MachineKind::AmdIommu,
    ];

    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            MachineKind::Default => "default",
            MachineKind::ThreeProcessors => "three-processors",
            MachineKind::Systemd => "systemd",
            MachineKind::DiskPlatform => "disk-platform",
            MachineKind::IntelIommu => "intel-iommu",
            MachineKind::AmdIommu => "amd-iommu",
        }
    }

    /// How many processors it has: one for Dom0, the others for guests.
    pub(super) fn processors(self) -> u32 {
        match self {
            MachineKind::ThreeProcessors => 3,
            _ => 2,
        }
    }

    /// QEMU's options for the chipset and what must be there before other devices.
    pub(super) fn chipset(self) -> &'static [&'static str] {
        match self {
            MachineKind::Default | MachineKind::ThreeProcessors | MachineKind::DiskPlatform => {
                &["-machine", "q35"]
            }
            // udev loads a driver for whatever there is.
            MachineKind::Systemd => &["-machine", "q35,sata=off,smbus=off,i8042=off"],
            // Interrupts can be remapped only where QEMU itself is the I/O interrupt controller.
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

    /// What runs first in Dom0's root file system.
    pub(crate) fn init(self) -> Init {
        match self {
            MachineKind::Systemd => Init::Systemd,
            _ => Init::Lab,
        }
    }

    /// What Dom0's disks are, as virtio devices.
    pub(super) fn disk_access(self) -> Access {
        match self {
            MachineKind::Default | MachineKind::ThreeProcessors | MachineKind::Systemd => {
                Access::Bypass
            }
            MachineKind::DiskPlatform | MachineKind::IntelIommu | MachineKind::AmdIommu => {
                Access::Platform
            }
        }
    }

    /// The cards that a guest can have.
    pub(super) fn spare_cards(self) -> &'static [SpareCard] {
        match self {
            MachineKind::Default
            | MachineKind::ThreeProcessors
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
                bail!("there is no machine {name}: machines are {names}")
            }
        }
    }
}

/// What runs first in Dom0's root file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Init {
    /// The lab's own script, `dom0/init`.
    Lab,
    /// systemd, which starts `dom0/lab.service` beside what Debian's packages bring.
    Systemd,
}

impl Init {
    /// Options of Dom0's kernel: the first is for `dom0/initrd-init`.
    pub(super) fn options(self) -> &'static str {
        match self {
            Init::Lab => "",
            Init::Systemd => " lab.init=systemd systemd.wants=lab.service",
        }
    }

    /// How long Xen and Dom0 may take until xen-virtiod runs: ten times what they take under
    /// emulation.
    pub(crate) fn limit(self) -> Duration {
        match self {
            Init::Lab => Duration::from_secs(180),
            Init::Systemd => Duration::from_secs(600),
        }
    }
}

/// How a virtio device of QEMU's reaches memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Past the platform's IOMMU, if there is one: as QEMU's devices do unless they are told.
    Bypass,
    /// As any other device of the platform, which it says by VIRTIO_F_ACCESS_PLATFORM.
    Platform,
}

impl Access {
    /// What a `-device` says of it. A device that may not say VIRTIO_F_VERSION_1 cannot say
    /// VIRTIO_F_ACCESS_PLATFORM.
    pub(super) fn options(self) -> &'static str {
        match self {
            Access::Bypass => "iommu_platform=off",
            Access::Platform => "iommu_platform=on,disable-legacy=on",
        }
    }
}

/// A virtio-blk-pci card that Dom0 does not need.
#[derive(Clone, Copy, Debug)]
pub(super) struct SpareCard {
    /// Its disk's serial number.
    pub(super) serial: &'static str,
    /// How it reaches memory.
    pub(super) access: Access,
    /// Its slot on the root bus: high enough to be nobody else's.
    pub(super) slot: u8,
}

/// The same card twice, but for one bit.
const SPARE_CARDS: [SpareCard; 2] = [
    SpareCard { serial: "platform", access: Access::Platform, slot: 0x10 },
    SpareCard { serial: "bypass", access: Access::Bypass, slot: 0x11 },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_known_by_their_names() {
        for machine in MachineKind::ALL {
            assert_eq!(machine.to_string().parse::<MachineKind>().unwrap(), machine);
        }
        assert_eq!(MachineKind::default().name(), "default");
        let error = "pdp-11".parse::<MachineKind>().unwrap_err().to_string();
        assert!(error.contains("pdp-11") && error.contains("amd-iommu"), "{error}");
    }

    #[test]
    fn the_cards_of_a_machine_differ() {
        let [platform, bypass] = SPARE_CARDS;
        assert_ne!(platform.access, bypass.access);
        assert_ne!(platform.slot, bypass.slot);
    }
}
