//! Whether XenStore answers.

use super::finding::Finding;
use super::host::Host;
use super::inventory::{Kind, StoreFailure};

pub(super) fn examine(host: &Host) -> Vec<Finding> {
    let finding = match &host.inventory {
        Ok(inventory) => {
            let (disks, networks) = (inventory.count(Kind::Disk), inventory.count(Kind::Network));
            let others = inventory.count(Kind::Other);
            Finding::ok(format!(
                "it answers; guests have {disks} disk(s), {networks} network device(s) and {others} \
                 other device(s) of this domain"
            ))
        }
        Err(StoreFailure::NotPermitted) => Finding::root_only("/dev/xen/xenbus"),
        Err(StoreFailure::NoDevice) => {
            Finding::error("there is no /dev/xen/xenbus: see \"devices of Xen\"")
        }
        Err(StoreFailure::Failed(why)) if host.is_dom0() => {
            let text = format!("it does not answer: {why}");
            Finding::error(text)
                .mend("systemctl start xen   # or xenstored; if that has died, only a reboot helps")
        }
        Err(StoreFailure::Failed(why)) => {
            let text = format!("it does not answer, so xenstored of Dom0 has failed: {why}");
            Finding::error(text).mend("systemctl status xen xenstored   # in Dom0")
        }
    };
    vec![finding]
}

#[cfg(test)]
mod tests {
    use std::io;

    use xen::StoreError;

    use super::super::inventory::StoreFailure;
    use super::super::tests::TestHost;

    const CHECK: &str = "XenStore";

    fn not_opened(kind: io::ErrorKind) -> StoreFailure {
        let (path, source) = ("/dev/xen/xenbus".to_owned(), kind.into());
        StoreFailure::from(StoreError::Connection { operation: "open", path, source })
    }

    #[test]
    fn store_that_answers_shows_devices() {
        let host = TestHost::healthy();
        host.expect(CHECK, &["ok: it answers; guests have 1 disk(s), 1 network device(s) and 1 "]);
    }

    #[test]
    fn store_that_does_not_answer_is_an_error() {
        let mut host = TestHost::healthy();
        host.fail_store(StoreFailure::from(StoreError::Protocol("nothing")));
        host.expect(CHECK, &["error: it does not answer: XenStore viol", "systemctl start xen"]);
        host.write("/proc/xen/capabilities", "");
        host.expect(CHECK, &["so xenstored of Dom0 has failed", "in Dom0"]);
        host.fail_store(not_opened(io::ErrorKind::NotFound));
        host.expect(CHECK, &["error: there is no /dev/xen/xenbus"]);
        host.fail_store(not_opened(io::ErrorKind::PermissionDenied));
        host.expect(CHECK, &["unknown: /dev/xen/xenbus: only root"]);
    }
}
