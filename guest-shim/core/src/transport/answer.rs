//! Checks that a response answers the request with the same token.
//!
//! The transport keeps request and response in encoded form, in private memory. A second decoding
//! is simpler than a second set of types without borrowed bytes.

use protocol::message::{Body, ConfigData, Message, Request, Response};

use super::Mismatch;

/// Fields of a response that the transport itself uses.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Learnt {
    /// The configuration's generation.
    pub(super) generation: Option<u32>,
    /// Size of the configuration space, in bytes.
    pub(super) config_size: Option<u32>,
}

/// Checks the fields of a response that its request determines.
pub(super) fn check(request: &[u8], response: &[u8]) -> Result<Learnt, Mismatch> {
    let request = self::request(request).ok_or(Mismatch)?;
    let response = self::response(response).ok_or(Mismatch)?;
    if !answers(&request, &response) {
        return Err(Mismatch);
    }
    let mut learnt = Learnt::default();
    match response {
        Response::GetConfig(config) | Response::SetConfig(config) => {
            learnt.generation = Some(config.generation);
        }
        Response::GetDeviceInfo(info) => learnt.config_size = Some(info.config_size),
        _ => {}
    }
    Ok(learnt)
}

/// Decodes a message that is a request.
fn request(bytes: &[u8]) -> Option<Request<'_>> {
    match Message::decode(bytes).ok()?.body {
        Body::Request(request) => Some(request),
        _ => None,
    }
}

/// Decodes a message that is a response.
pub(super) fn response(bytes: &[u8]) -> Option<Response<'_>> {
    match Message::decode(bytes).ok()?.body {
        Body::Response(response) => Some(response),
        _ => None,
    }
}

fn answers(request: &Request<'_>, response: &Response<'_>) -> bool {
    match (*request, *response) {
        (Request::GetDeviceInfo, Response::GetDeviceInfo(_))
        | (Request::SetDriverFeatures(_), Response::SetDriverFeatures)
        | (Request::GetDeviceStatus, Response::GetDeviceStatus(_))
        // Any status: even a reset may complete later [6.4].
        | (Request::SetDeviceStatus(_), Response::SetDeviceStatus(_))
        | (Request::SetVqueue(_), Response::SetVqueue)
        | (Request::ResetVqueue { .. }, Response::ResetVqueue) => true,
        (Request::GetDeviceFeatures { first, count }, Response::GetDeviceFeatures(blocks)) => {
            blocks.first == first && whole_or_none(blocks.count(), count)
        }
        (Request::GetConfig { offset, size }, Response::GetConfig(config)) => {
            is_piece(&config, offset, size)
        }
        (Request::SetConfig(written), Response::SetConfig(config)) => {
            is_piece(&config, written.offset, written.data.len() as u32)
        }
        (Request::GetVqueue { index }, Response::GetVqueue(queue)) => queue.index == index,
        (Request::GetShm { shmid: asked }, Response::GetShm { shmid, .. }) => shmid == asked,
        (Request::Ping(sent), Response::Ping(echoed)) => sent == echoed,
        (Request::BindQueue { index: asked, .. }, Response::BindQueue { index, .. }) => {
            index == asked
        }
        (Request::SharePages { first: asked, .. }, Response::SharePages { first, .. }) => {
            first == asked
        }
        (Request::UnsharePages { first: asked, .. }, Response::UnsharePages { first, .. }) => {
            first == asked
        }
        _ => false,
    }
}

/// Whether the device returned all that the request names, or nothing because it does not fit or
/// the device rejected it [5.5, 6.6].
fn whole_or_none(got: u32, asked: u32) -> bool {
    got == asked || got == 0
}

fn is_piece(config: &ConfigData<'_>, offset: u32, size: u32) -> bool {
    config.offset == offset && whole_or_none(config.data.len() as u32, size)
}
