//! The daemon's work for one guest does not grow with the number of guests.

use super::host::{Host, XVDA, numbered_disk};
use xen_sim::Hypervisor;

/// The first of the other guests.
const FIRST: u16 = 100;

/// Adds guests with a disk that has ended and whose directory stands.
fn add_ended(hypervisor: &Hypervisor, guests: u16) {
    for guest in FIRST..FIRST + guests {
        let state = format!("/local/domain/0/backend/virtio_disk/{guest}/{XVDA}/state");
        hypervisor.store_write(&state, "6");
    }
}

/// The paths of XenStore that the daemon reads while guests 1 to 3 get a disk, connect and lose it
/// beside so many others: those of other guests, and those of directories of all.
fn read_of_others(guests: u16) -> Vec<String> {
    let (hypervisor, disk) = (Hypervisor::default(), numbered_disk(8));
    add_ended(&hypervisor, guests);
    let host = Host::start_on(hypervisor);
    let serve = |guest| {
        let ends = host.add_disk(guest, XVDA, disk.path(), "r");
        let mut driver = host.connect(&ends);
        driver.start();
        driver.close();
        host.remove(&ends);
    };
    // The server has read all others' when it serves the second of these.
    serve(1);
    serve(2);
    host.hypervisor.store_requests();
    serve(3);
    // The server has handled the end of its device when it serves another.
    serve(1);
    let read = host.hypervisor.store_requests();
    host.finish();
    let is_of = |path: &str, name: &str| path.split('/').any(|part| part == name);
    // Each device reads which domain it runs in.
    let own = |path: &String| ["1", "2", "3", "domid"].iter().any(|name| is_of(path, name));
    assert!(read.iter().any(own));
    read.into_iter().filter(|path| !own(path)).collect()
}

#[test]
fn work_for_one_guest_is_independent_of_the_number_of_guests() {
    for guests in [10, 1000] {
        assert_eq!(read_of_others(guests), [""; 0], "beside {guests} guests");
    }
}
