//! The kernel inside a bzImage. xl accepts both, but unpacks a bzImage at every start of a guest,
//! which takes seconds under emulation.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::debian::root::Root;

/// The bytes of a sector, the unit of the setup's size.
const SECTOR: usize = 512;

/// How an ELF file begins.
const ELF: &[u8] = b"\x7fELF";

/// The programs that unpack kernels, and how their files begin: lz4's by its legacy format, which
/// zstd's program does not read.
const UNPACKERS: [(&str, &[u8]); 2] = [("zstd", b"\x28\xb5\x2f\xfd"), ("lz4", b"\x02\x21\x4c\x18")];

/// Unpacks the kernel of the bzImage `image` to the file `to`, by a program of `root`.
pub(super) fn unpack(image: &Path, root: &Root, to: &Path) -> Result<()> {
    let bytes = fs::read(image)?;
    let payload = Payload::of(&bytes)
        .with_context(|| format!("{} is no bzImage of Linux", image.display()))?;
    let unpacker = UNPACKERS.iter().find(|(_, magic)| payload.packed.starts_with(magic));
    let (name, _) = unpacker.with_context(|| format!("{} is packed otherwise", image.display()))?;
    let packed = to.with_extension("packed");
    fs::write(&packed, payload.packed)?;
    let kernel = root.unpacked_by(name, &packed)?;
    fs::remove_file(&packed)?;
    ensure!(
        kernel.len() == payload.size && kernel.starts_with(ELF),
        "{} has no ELF file of {} bytes, but {} bytes",
        image.display(),
        payload.size,
        kernel.len()
    );
    Ok(fs::write(to, kernel)?)
}

/// The compressed kernel in a bzImage.
#[derive(Debug, PartialEq, Eq)]
struct Payload<'a> {
    packed: &'a [u8],
    /// The bytes of the unpacked kernel. Linux's build appends this number to zstd's and lz4's.
    size: usize,
}

impl<'a> Payload<'a> {
    /// Finds the payload by the setup header: Documentation/arch/x86/boot.rst of Linux, the fields
    /// `setup_sects`, `header`, `payload_offset` and `payload_length`. Returns `None` if there is
    /// none.
    fn of(image: &'a [u8]) -> Option<Self> {
        if image.get(0x202..0x206)? != b"HdrS" {
            return None;
        }
        let number =
            |at: usize| Some(u32::from_le_bytes(*image.get(at..)?.first_chunk()?) as usize);
        let setup = (usize::from(*image.get(0x1f1)?) + 1) * SECTOR;
        let payload = image.get(setup.checked_add(number(0x248)?)?..)?;
        let (packed, size) = payload.get(..number(0x24c)?)?.split_last_chunk()?;
        Some(Self { packed, size: u32::from_le_bytes(*size) as usize })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bzImage with one sector of setup and, from byte 8 behind it, this payload.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 2 * SECTOR + 8];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248] = 8;
        image[0x24c] = u8::try_from(payload.len()).unwrap();
        image.extend(payload);
        image.extend(b"behind");
        image
    }

    #[test]
    fn payload_is_found_by_the_header() {
        let image = image(b"packed\x00\x02\x00\x00");
        let payload = Payload { packed: b"packed", size: 512 };
        assert_eq!(Payload::of(&image), Some(payload));
    }

    #[test]
    fn other_files_have_no_payload() {
        let mut wrong = image(b"packed\0\0\0\0");
        wrong[0x24b] = 0xff;
        for file in [&b""[..], ELF, &[0; 4096], &image(b"abc"), &wrong] {
            assert_eq!(Payload::of(file), None, "{} bytes", file.len());
        }
    }
}
