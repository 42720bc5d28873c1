//! Tests of qcow2 images that must not be served or written: the daemon refuses them with the
//! reason and a remedy.

use std::fs;

use super::qcow2::store;
use crate::device::blk::sample::{COPIED, ImageBytes, Shape, compressed, position, snapshotted};
use crate::device::blk::{Exercised, Target, TargetOptions, exercise_qcow2, qcow2_samples};

/// Opens an image as a writable disk; returns the reason if it is refused.
fn open(image: &ImageBytes) -> Result<(), String> {
    let (_directory, path) = store(image);
    let opened = Target::open(TargetOptions::for_test(&path)).map(drop);
    let stored = fs::read(&path).unwrap();
    assert!(stored == image.bytes, "the open changed the image");
    opened.map_err(|error| crate::Causes(&error).to_string())
}

/// Checks that the image is refused with a reason that contains all `words`.
fn refused(image: &ImageBytes, words: &[&str]) {
    let reason = open(image).unwrap_err();
    words.iter().for_each(|word| assert!(reason.contains(word), "{word:?} is not in {reason:?}"));
    assert_eq!(exercise_qcow2(&image.bytes).unwrap(), Exercised::Refused);
}

fn image() -> ImageBytes {
    ImageBytes::new(Shape::default())
}

#[test]
fn consistent_images_of_every_shape_are_used() {
    for (version, refcount_orders) in [(2, 4..=4), (3, 0..=6)] {
        for refcount_order in refcount_orders {
            for (cluster_bits, size) in [(9, 32 << 10), (12, 1 << 20), (16, 8 << 20), (21, 8 << 20)]
            {
                let shape = Shape { version, refcount_order, cluster_bits, size, data: 3 };
                let image = ImageBytes::new(shape);
                let what = format!("version {version}, 2^{cluster_bits}, 2^{refcount_order} bits");
                assert_eq!(open(&image), Ok(()), "{what}");
                assert_eq!(exercise_qcow2(&image.bytes).unwrap(), Exercised::Used, "{what}");
            }
        }
    }
    let largest = ImageBytes::new(Shape { cluster_bits: 21, ..Shape::default() });
    assert_eq!(exercise_qcow2(&largest.bytes).unwrap(), Exercised::Used);
}

/// The remedy in the refusal of a damaged image.
const REPAIR: &str = "qemu-img check -r all \"/";

#[test]
fn used_cluster_with_a_refcount_of_0_is_refused() {
    let mut image = image();
    image.put_u32(56, 0);
    refused(&image, &["0x0", "reference count of 0", REPAIR]);

    let table = image.at(position::REFCOUNT_TABLE);
    for (at, zeros) in [(table, 1 << 16), (image.at(position::REFCOUNT_BLOCK), 1 << 16)] {
        let mut image = ImageBytes::new(Shape::default());
        image.bytes[at as usize..][..zeros].fill(0);
        refused(&image, &["0x0", "reference count of 0", REPAIR]);
    }
    // Clusters that are counted before they are used. A kill may leave the others uncounted.
    for cluster in 0..=position::L1 {
        let mut image = ImageBytes::new(Shape::default());
        image.set_refcount(cluster, 0);
        refused(&image, &[&format!("{:#x}", image.at(cluster)), "reference count of 0", REPAIR]);
    }
}

#[test]
fn cluster_with_two_purposes_is_refused() {
    let tables = [position::REFCOUNT_TABLE, position::REFCOUNT_BLOCK, position::L1, position::L2];
    for marked in [0, COPIED] {
        for cluster in tables {
            // Refused with any refcount.
            for count in [1, 2] {
                let mut image = image();
                image.put_u64(image.l2_entry(7), marked | image.at(cluster));
                image.set_refcount(cluster, count);
                refused(&image, &[REPAIR]);
            }
        }
    }
    // An entry cannot refer to the header, but compressed data can be at offset 0.
    let mut header = image();
    header.put_u64(header.l2_entry(7), 1 << 62 | 0x200);
    refused(&header, &["0x0", "two purposes", REPAIR]);
    for field in [40, 48] {
        for cluster in [position::REFCOUNT_BLOCK, position::L2, position::DATA] {
            let mut image = image();
            image.put_u64(field, image.at(cluster));
            refused(&image, &[]);
        }
    }
    let mut image = image();
    image.put_u64(image.at(position::REFCOUNT_TABLE) + 8, image.at(position::L1));
    refused(&image, &["two purposes", REPAIR]);
}

#[test]
fn data_used_more_often_than_counted_is_refused() {
    for marked in [0, COPIED] {
        let mut image = image();
        let data = image.at(position::DATA);
        image.put_u64(image.l2_entry(0), marked | data);
        image.put_u64(image.l2_entry(9), marked | data);
        refused(&image, &["0x50000", "more often than its reference count of 1", REPAIR]);
        image.set_refcount(position::DATA, 2);
        if marked == 0 {
            assert_eq!(open(&image), Ok(()));
            assert_eq!(exercise_qcow2(&image.bytes).unwrap(), Exercised::Used);
        } else {
            refused(&image, &["0x50000", "marked as used once", "count is 2", REPAIR]);
        }
    }
}

#[test]
fn cluster_written_in_place_must_be_used_once() {
    let mut image = image();
    image.set_refcount(position::L2, 2);
    refused(&image, &["0x40000", "marked as used once", REPAIR]);
    image.put_u64(image.at(position::L1), image.at(position::L2));
    assert_eq!(open(&image), Ok(()));
    assert_eq!(exercise_qcow2(&image.bytes).unwrap(), Exercised::Used);
}

#[test]
fn level_2_table_for_two_parts_of_the_disk_is_refused() {
    let mut image = image();
    image.put_u32(36, 2);
    image.put_u64(image.at(position::L1), image.at(position::L2));
    image.put_u64(image.at(position::L1) + 8, image.at(position::L2));
    image.set_refcount(position::L2, 2);
    refused(&image, &["level 2 table at 0x40000", "two parts"]);
}

#[test]
fn entry_outside_the_file_or_misaligned_is_refused() {
    let end = (position::DATA + 2) << 16;
    let clusters_only = "does not begin where a cluster does";
    let outside = "is not in the file";
    let l2_entry = |image: &ImageBytes| image.l2_entry(3);
    let l1_entry = |image: &ImageBytes| image.at(position::L1);
    let block_entry = |image: &ImageBytes| image.at(position::REFCOUNT_TABLE) + 8;
    for (what, at) in [("data", l2_entry(&image())), ("level 2", l1_entry(&image()))] {
        for (offset, words) in [
            (end, outside),
            (0x00ff_ffff_ffff_0000, outside),
            (end - 512, clusters_only),
            (0x200, clusters_only),
        ] {
            for marked in [0, COPIED] {
                let mut image = image();
                image.put_u64(at, marked | offset);
                refused(&image, &[what, words, REPAIR]);
            }
        }
    }
    for (offset, words) in [(end, outside), (0x200, clusters_only), (u64::MAX << 16, outside)] {
        let mut image = image();
        image.put_u64(block_entry(&image), offset);
        refused(&image, &["refcount block", words]);
    }
    for (field, what) in [(40, "level 1 table"), (48, "refcount table")] {
        for offset in [end, u64::MAX << 16] {
            let mut image = image();
            image.put_u64(field, offset);
            refused(&image, &[what, outside]);
        }
        for offset in [0, 0x200, end - 8] {
            let mut image = image();
            image.put_u64(field, offset);
            refused(&image, &[what, "where no cluster begins"]);
        }
    }
}

#[test]
fn table_across_the_files_end_is_refused() {
    let mut image = image();
    let last = image.at(position::DATA + 1);
    image.put_u64(40, last);
    image.put_u32(36, 8193);
    refused(&image, &["level 1 table at 0x60000", "not in the file"]);
}

#[test]
fn entries_with_unknown_bits_are_refused() {
    for bit in [1, 1 << 8, 1 << 56, 1 << 62] {
        let mut image = image();
        image.put_u64(image.at(position::L1), COPIED | image.at(position::L2) | bit);
        refused(&image, &["level 1 table", "unknown bits"]);
    }
    for bit in [2, 1 << 8, 1 << 56, 1 << 61] {
        let mut image = image();
        image.put_u64(image.l2_entry(0), COPIED | image.at(position::DATA) | bit);
        refused(&image, &["level 2 table", "unknown bits"]);
    }
    // The zero flag exists since version 3.
    let mut image = ImageBytes::new(Shape { version: 2, ..Shape::default() });
    image.put_u64(image.l2_entry(0), COPIED | image.at(position::DATA) | 1);
    refused(&image, &["level 2 table", "unknown bits"]);
}

#[test]
fn impossible_refcounts_are_refused_and_leaked_clusters_are_not() {
    for count in [u64::from(u16::MAX), u64::MAX] {
        let mut image = ImageBytes::new(Shape { refcount_order: 6, ..Shape::default() });
        image.set_refcount(position::DATA, count);
        refused(&image, &["0x50000", &format!("reference count of {count}")]);
    }
    let mut image = image();
    image.set_refcount(0, 2);
    image.set_refcount(100, 7);
    image.set_refcount(position::REFCOUNT_TABLE, 9);
    assert_eq!(open(&image), Ok(()));
    assert_eq!(exercise_qcow2(&image.bytes).unwrap(), Exercised::Used);
}

#[test]
fn damaged_headers_are_refused() {
    let cases: [(&str, &[(u64, u32)]); 12] = [
        ("clusters of 2^8 bytes", &[(20, 8)]),
        ("clusters of 2^22 bytes", &[(20, 22)]),
        ("clusters of 2^4294967295 bytes", &[(20, u32::MAX)]),
        ("refcounts of 2^7 bits", &[(96, 7)]),
        ("refcounts of 2^4294967295 bits", &[(96, u32::MAX)]),
        ("a level 1 table of 4294967295 entries", &[(36, u32::MAX)]),
        ("a level 1 table of 0 entries for 8388608 bytes", &[(36, 0)]),
        ("a level 1 table of 1 entries for", &[(24, 1 << 28)]),
        ("a refcount table of", &[(56, u32::MAX)]),
        ("a header of 96 bytes", &[(100, 96)]),
        ("longer than a cluster", &[(100, u32::MAX)]),
        ("4294967295 snapshots", &[(60, u32::MAX)]),
    ];
    for (words, fields) in cases {
        let mut image = image();
        fields.iter().for_each(|(at, value)| image.put_u32(*at, *value));
        refused(&image, &["it is damaged", words, "restore a copy"]);
    }
    for cut in [0, 3, 4, 71, 103] {
        let mut image = image();
        image.bytes.truncate(cut);
        refused(&image, &[]);
    }
}

#[test]
fn malformed_header_extensions_are_refused() {
    const FEATURE_NAMES: u32 = 0x6803_f857;
    const BACKING_FORMAT: u32 = 0xe279_2aca;
    let mut long = image();
    long.put_u32(104, 1);
    long.put_u32(108, u32::MAX);
    refused(&long, &["longer than a cluster"]);

    // The library assumes that the last name is complete, and panics.
    let mut names = image();
    let at = names.add_extension(104, FEATURE_NAMES, &[0; 49]);
    names.add_extension(at, 0, &[]);
    refused(&names, &["a feature name table of 49 bytes"]);

    let mut formats = image();
    let at = formats.add_extension(104, BACKING_FORMAT, b"raw");
    let at = formats.add_extension(at, BACKING_FORMAT, b"qcow2");
    formats.add_extension(at, 0, &[]);
    refused(&formats, &["two formats"]);

    for (offset, length, words) in [
        (200, 1024, "name of 1024 bytes"),
        (65_530, 100, "longer than a cluster"),
        (u64::MAX, 100, "longer than a cluster"),
        (65_536, 1, "longer than a cluster"),
    ] {
        let mut image = image();
        image.put_u64(8, offset);
        image.put_u32(16, length);
        refused(&image, &[words]);
    }
    let mut name = image();
    name.set_backing("base.raw", Some("raw"));
    let at = name.bytes.iter().position(|byte| *byte == b'b').unwrap();
    name.bytes[at] = 0xff;
    refused(&name, &["no text"]);
}

#[test]
fn unsupported_images_are_refused_with_kind_and_remedy() {
    let convert = "qemu-img convert";
    type Case<'a> = (&'a [(u64, u32)], &'a [&'a str]);
    let cases: [Case<'_>; 13] = [
        (&[(4, 1)], &["version 1", "qemu-img convert -f qcow -O qcow2 \"/"]),
        (&[(4, 4)], &["version 4", convert]),
        (&[(32, 1)], &["encrypted (AES)", convert, "encrypt.format=aes"]),
        (&[(32, 2)], &["encrypted (LUKS)", convert, "encrypt.format=luks"]),
        (&[(32, 3)], &["encrypted", "method 3"]),
        (&[(76, 1)], &["dirty", REPAIR]),
        (&[(76, 2)], &["corrupt", REPAIR]),
        (&[(76, 4)], &["data is in another file", convert]),
        (&[(76, 8), (100, 112), (104, 1 << 24)], &["zstd", convert]),
        (&[(100, 112), (104, 1 << 24)], &["zstd", convert]),
        (&[(76, 16)], &["extended level 2 entries", convert, "extended_l2=off"]),
        (&[(76, 32)], &["incompatible features", "0x20", convert]),
        (&[(72, 1 << 31)], &["incompatible features", "0x8000000000000000", convert]),
    ];
    for (fields, words) in cases {
        let mut image = image();
        fields.iter().for_each(|(at, value)| image.put_u32(*at, *value));
        refused(&image, words);
    }
    let mut image = image();
    image.bytes[..4].copy_from_slice(b"KDMV");
    refused(&image, &["not a qcow2 image", "format = \"raw\""]);
}

#[test]
fn image_with_snapshots_is_used_and_their_clusters_are_checked() {
    let image = snapshotted();
    assert_eq!(open(&image), Ok(()));
    assert_eq!(exercise_qcow2(&image.bytes).unwrap(), Exercised::Used);

    for cluster in [position::L2, position::DATA, position::DATA + 1] {
        let mut image = snapshotted();
        image.set_refcount(cluster, 1);
        refused(&image, &[&format!("{:#x}", image.at(cluster)), "count of 1", REPAIR]);
    }
    let table = position::DATA + 2;
    for cluster in [table, table + 1] {
        let mut image = snapshotted();
        image.set_refcount(cluster, 0);
        refused(&image, &[&format!("{:#x}", image.at(cluster)), "count of 0", REPAIR]);
    }
    let mut image = snapshotted();
    image.put_u64(image.at(position::L1), COPIED | image.at(position::L2));
    refused(&image, &["0x40000", "marked as used once"]);
}

#[test]
fn too_large_snapshot_tables_are_refused() {
    let table = position::DATA + 2;
    let mut many = snapshotted();
    many.put_u32(many.at(table) + 8, u32::MAX);
    refused(&many, &["level 1 tables of more than"]);
    let mut endless = snapshotted();
    endless.put_u32(60, 65_536);
    endless.put_u32(endless.at(table) + 36, u32::MAX);
    refused(&endless, &["snapshot table", "not in the file"]);
    for offset in [u64::MAX << 16, 1 << 40] {
        let mut outside = snapshotted();
        outside.put_u64(64, offset);
        refused(&outside, &["snapshot table", "not in the file"]);
    }
}

#[test]
fn compressed_clusters_are_read_and_must_be_counted() {
    let image = compressed();
    assert_eq!(open(&image), Ok(()));
    assert_eq!(exercise_qcow2(&image.bytes).unwrap(), Exercised::Used);
    for cluster in [position::DATA + 2, position::DATA + 3] {
        let mut image = compressed();
        image.set_refcount(cluster, 0);
        refused(&image, &[&format!("{:#x}", image.at(cluster)), "count of 0"]);
    }
    let mut outside = compressed();
    outside.bytes.truncate(outside.at(position::DATA + 3) as usize);
    refused(&outside, &["compressed data", "not in the file"]);
}

#[test]
fn images_with_random_damage_are_refused_or_stay_consistent() {
    let images = qcow2_samples();
    let mut number = 0x1234_5678_u64;
    let mut random = |limit: usize| {
        number =
            number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (number >> 33) as usize % limit
    };
    let mut used = 0;
    for _ in 0..200 {
        let mut bytes = images[random(images.len())].clone();
        for _ in 0..=random(3) {
            // In the header or near the beginning of a table: most bytes are zeros without a
            // meaning.
            let cluster = [0, 0, 1, 2, 3, 4, 7, 8][random(8)]
                * if bytes.len() > 1 << 17 { 65536 } else { 4096 };
            let at = (cluster + random(128)).min(bytes.len() - 1);
            bytes[at] = match random(3) {
                0 => bytes[at] ^ 1 << random(8),
                1 => random(256) as u8,
                _ => 0,
            };
        }
        used += usize::from(exercise_qcow2(&bytes).unwrap() == Exercised::Used);
    }
    assert!((10..190).contains(&used), "{used} of 200 images were used");
}
