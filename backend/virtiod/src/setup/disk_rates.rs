//! The limits of the rates of a guest's disks, which may change while the disks are used.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::bus::DevicePath;
use crate::config::{Config, NoGroup};
use crate::device::blk::{DiskRates, Throttle};

/// The limits of all disks of a guest. The disks of a group have one [`Throttle`].
#[derive(Debug, Default)]
pub struct GuestRates(Mutex<Rates>);

#[derive(Debug, Default)]
struct Rates {
    disks: Vec<Disk>,
    /// Limits that replace those of the configuration with which the disk was set up.
    replaced: BTreeMap<DevicePath, DiskRates>,
}

#[derive(Debug)]
struct Disk {
    path: DevicePath,
    group: Option<String>,
    throttle: Weak<Throttle>,
}

impl GuestRates {
    /// The limits of the disk at `path`, which the configuration file calls `vdev`.
    ///
    /// # Errors
    /// [`NoGroup`].
    pub fn of_disk(
        &self,
        path: &DevicePath,
        config: &Config,
        guest: Option<&str>,
        vdev: &str,
    ) -> Result<Arc<Throttle>, NoGroup> {
        let (rates, group) = config.disk_rates(guest, vdev)?;
        let mut all = self.lock();
        let rates = all.replaced.get(path).copied().unwrap_or(rates);
        all.disks.retain(|disk| disk.throttle.strong_count() > 0);
        let of_group = |disk: &Disk| {
            let throttle = disk.throttle.upgrade()?;
            (group.is_some() && disk.group == group).then_some(throttle)
        };
        // A group has the limits of its first disk, or those of the last reload.
        let shared = all.disks.iter().find_map(of_group);
        let throttle = shared.unwrap_or_else(|| Arc::new(Throttle::new(rates)));
        all.disks.push(Disk { path: path.clone(), group, throttle: Arc::downgrade(&throttle) });
        Ok(throttle)
    }

    /// Replaces the limits of a disk, and of its group, also of one that is set up later; `None`:
    /// those of its configuration apply when it is set up.
    pub fn replace(&self, path: DevicePath, rates: Option<DiskRates>) {
        let mut all = self.lock();
        let Some(rates) = rates else {
            all.replaced.remove(&path);
            return;
        };
        let of_disk = all.disks.iter().filter(|disk| disk.path == path);
        let throttles: Vec<_> = of_disk.filter_map(|disk| disk.throttle.upgrade()).collect();
        throttles.iter().for_each(|throttle| throttle.set(rates));
        all.replaced.insert(path, rates);
    }

    fn lock(&self) -> MutexGuard<'_, Rates> {
        // The lists are consistent after every step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::ConfigFile;
    use xen::DomId;

    fn path(number: u32) -> DevicePath {
        DevicePath { class: "virtio_disk".to_owned(), guest: DomId(1), number }
    }

    fn config(text: &str) -> Config {
        ConfigFile::new(Some(Path::new("f").into())).with_text(text).load().unwrap().unwrap()
    }

    #[test]
    fn disks_of_a_group_share_limits() {
        let config = config(
            "[domain.db.group.data]\niops = 100\n\
             [domain.db.disk.xvda]\ngroup = \"data\"\n[domain.db.disk.xvdb]\ngroup = \"data\"\n\
             [domain.db.disk.xvdd]\ngroup = \"none\"\n\
             [default.disk]\nlimits = { iops = 7 }",
        );
        let rates = GuestRates::default();
        let of = |number, vdev| rates.of_disk(&path(number), &config, Some("db"), vdev);
        let (a, b, c) = (of(0, "xvda").unwrap(), of(1, "xvdb").unwrap(), of(2, "xvdc").unwrap());
        assert!(Arc::ptr_eq(&a, &b) && !Arc::ptr_eq(&a, &c));
        assert_eq!(a.rates().to_string(), "iops 100, burst 100ms");
        assert_eq!(c.rates().to_string(), "iops 7, burst 100ms");
        let error = of(3, "xvdd").unwrap_err().to_string();
        assert!(error.contains("[domain.db.group.none]"), "{error}");
        drop((a, b));
        let anew = of(0, "xvda").unwrap();
        assert_eq!(anew.rates().to_string(), "iops 100, burst 100ms");
    }

    #[test]
    fn replaced_limits_apply_to_the_group_and_to_the_next_set_up() {
        let before = config(
            "[domain.db.group.data]\niops = 100\n\
             [domain.db.disk.xvda]\ngroup = \"data\"\n[domain.db.disk.xvdb]\ngroup = \"data\"",
        );
        let rates = GuestRates::default();
        let of = |number, vdev| rates.of_disk(&path(number), &before, Some("db"), vdev).unwrap();
        let (_a, b) = (of(0, "xvda"), of(1, "xvdb"));
        let replaced =
            config("[default.disk]\nlimits = { iops = 5 }").disk(None, "").limits.rates();
        rates.replace(path(0), Some(replaced));
        assert_eq!(b.rates(), replaced);
        rates.replace(path(2), Some(replaced));
        assert_eq!(of(2, "xvdc").rates(), replaced);
        rates.replace(path(2), None);
        assert_eq!(of(2, "xvdc").rates(), DiskRates::default());
    }
}
