//! Each kind of device, with a guest that does what it likes, on the simulated hypervisor:
//! messages, rings, keys, grants that end, the host's side at the same time, and a second thread
//! that writes over everything.
//!
//! Whatever it does, the toolstack gets rid of the device, nothing of the guest's stays mapped or
//! bound, no thread panics, and the daemon goes on and stops when it is told to.

mod guest;
mod image;
mod network;
mod scribbler;
mod setting;
mod steps;

use arbitrary::{Result, Unstructured};

use self::guest::HostileGuest;
use self::setting::Setting;
use self::steps::Step;

/// Steps of one run, at most.
const MOST: usize = 64;

/// What the device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Block,
    /// A disk in a qcow2 image that may be damaged, or made to do harm.
    Image,
    Network,
    Console,
    Socket,
    Entropy,
}

pub(crate) fn blk(bytes: &[u8]) {
    run(Kind::Block, bytes);
}

pub(crate) fn qcow2(bytes: &[u8]) {
    let mut input = Unstructured::new(bytes);
    // What an input lacks at its end spoils nothing.
    let Ok(image) = image::spoiled(&mut input) else { return };
    play(Setting::start(Kind::Image, Some(&image)), &mut input);
}

pub(crate) fn net(bytes: &[u8]) {
    run(Kind::Network, bytes);
}

pub(crate) fn console(bytes: &[u8]) {
    run(Kind::Console, bytes);
}

pub(crate) fn vsock(bytes: &[u8]) {
    run(Kind::Socket, bytes);
}

pub(crate) fn rng(bytes: &[u8]) {
    run(Kind::Entropy, bytes);
}

fn run(kind: Kind, bytes: &[u8]) {
    play(Setting::start(kind, None), &mut Unstructured::new(bytes));
}

fn play(mut setting: Setting, input: &mut Unstructured<'_>) {
    let mut guest = HostileGuest::connect(&mut setting);
    // What an input lacks at its end is no step.
    let _ = take_steps(&mut guest, input);
    guest.leave();
    setting.end();
}

fn take_steps(guest: &mut HostileGuest<'_>, input: &mut Unstructured<'_>) -> Result<()> {
    // Most of what there is to find is behind a device that runs.
    if input.ratio(7, 8)? {
        guest.start();
    }
    for _ in 0..MOST {
        if input.is_empty() {
            break;
        }
        let step: Step<'_> = input.arbitrary()?;
        guest.take(step);
    }
    Ok(())
}
