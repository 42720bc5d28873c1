//! Each kind of device against a hostile guest on the simulated hypervisor. The guest uses
//! messages, rings, XenStore keys, grants that end, and a second thread that overwrites its memory;
//! programs on the host act at the same time.
//!
//! Whatever the guest does, the toolstack can remove the device, nothing of the guest stays mapped
//! or bound, no thread panics, and the daemon continues until the target stops it.

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

/// Maximum number of steps in one run.
const MOST: usize = 64;

/// The kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Block,
    /// A disk in a qcow2 image that may be damaged or malicious.
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
    // The run ends here if the input is too short for an image.
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
    // An input that ends within a step ends the run.
    let _ = take_steps(&mut guest, input);
    guest.leave();
    setting.end();
}

fn take_steps(guest: &mut HostileGuest<'_>, input: &mut Unstructured<'_>) -> Result<()> {
    // Most of the code runs only once the device is started.
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
