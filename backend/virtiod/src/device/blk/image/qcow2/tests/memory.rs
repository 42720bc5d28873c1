//! Tests of the memory that images of any shape may take.

use std::os::unix::fs::FileExt;

use super::*;

/// An image without data in clusters of 2 MiB.
fn large(size: u64, backing: Option<&str>) -> ImageBytes {
    let shape = Shape { cluster_bits: 21, data: 0, ..Shape::default() };
    let mut image = ImageBytes::new(shape);
    image.put_u64(24, size);
    image.put_u32(36, size.div_ceil(1 << 39) as u32);
    if let Some(name) = backing {
        image.set_backing(name, Some("qcow2"));
    }
    image
}

/// Makes a chain of images of this size, and opens the last.
fn chain(images: usize, size: u64) -> Result<(), String> {
    let directory = tempfile::tempdir().unwrap();
    let path = |number: usize| directory.path().join(format!("{number}.qcow2"));
    for number in 0..images {
        let below = number.checked_sub(1).map(|below| format!("{below}.qcow2"));
        let bytes = large(size, below.as_deref()).bytes;
        let file = fs::File::create(path(number)).unwrap();
        // Only the first bytes of each cluster are not zero.
        for (at, cluster) in (0..).step_by(1 << 21).zip(bytes.chunks(1 << 21)) {
            file.write_all_at(&cluster[..4096], at).unwrap();
        }
        file.set_len(bytes.len() as u64).unwrap();
    }
    let options = TargetOptions::for_test(&path(images - 1));
    let mut files = DiskFiles::claim_here(&options).unwrap();
    let opened = Qcow2Image::open(&options, &mut files);
    opened.map(drop).map_err(|error| crate::Causes(&error).to_string())
}

#[test]
fn chain_with_too_much_table_memory_is_refused_with_advice() {
    assert_eq!(chain(1, 64 << 40), Ok(()));
    assert_eq!(chain(1, 1 << 57), Ok(()));
    assert_eq!(chain(16, 1 << 40), Ok(()));
    let reason = chain(2, 64 << 40).unwrap_err();
    let words = ["MiB of this domain's memory", "cluster_size=64k", "/1.qcow2\" NEW"];
    words.iter().for_each(|word| assert!(reason.contains(word), "{word:?} is not in {reason:?}"));
}

/// An image in clusters of 512 bytes that names this many level 2 tables, with a window full of
/// clusters behind them.
fn many_tables(tables: u64) -> (TempDir, PathBuf, Qcow2Header) {
    let (directory, path) = store(&ImageBytes::new(Shape {
        cluster_bits: 9,
        size: 32 << 10,
        data: 0,
        ..Shape::default()
    }));
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let l1 = 4096;
    let first = l1 + tables * 8 / 512 + 1;
    let entries: Vec<u8> =
        (0..tables).flat_map(|number| ((first + number) << 9).to_be_bytes()).collect();
    file.write_all_at(&entries, l1 << 9).unwrap();
    file.set_len((first + tables + (20 << 20)) << 9).unwrap();
    let header = Qcow2Header::read(&fs::File::open(&path).unwrap()).unwrap();
    let l1 = header::Table { offset: l1 << 9, entries: tables };
    (directory, path, Qcow2Header { l1, ..header })
}

#[test]
fn check_memory_is_bounded_for_any_image() {
    let most = 2 << 20;
    for (tables, words) in [(most, "reference count of 0"), (most + 1, "level 2 tables")] {
        let (_directory, path, header) = many_tables(tables);
        let file = fs::File::open(&path).unwrap();
        let mut outcome = None;
        let taken = allocation_counter::measure(|| {
            let mut check = Check::new(file, header);
            outcome = Some(check.run(&Deadline::after(Duration::from_secs(60))));
        });
        let error = damaged(&path, outcome.unwrap().unwrap_err()).to_string();
        assert!(error.contains(words), "{error}");
        assert!(taken.bytes_max < 96 << 20, "{} MiB", taken.bytes_max >> 20);
        let advice = ["qemu-img check -r all", "convert -O qcow2 -o cluster_size=64k"];
        assert!(error.contains(advice[usize::from(tables > most)]), "{error}");
    }
}

#[test]
fn check_holds_one_window_at_a_time() {
    let shape = Shape { cluster_bits: 9, size: 32 << 10, ..Shape::default() };
    let mut image = ImageBytes::new(shape);
    // The second refcount block is far behind, and its own cluster is uncounted.
    image.put_u64(image.at(position::REFCOUNT_TABLE) + 8, image.at(15 << 20));
    let (_directory, path) = store(&image);
    let file = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    file.set_len(image.at(32 << 20)).unwrap();
    let header = Qcow2Header::read(&file).unwrap();
    let taken = allocation_counter::measure(|| {
        let outcome = Check::new(file, header).run(&Deadline::after(Duration::from_secs(60)));
        assert!(outcome.unwrap_err().to_string().contains("count of 0"));
    });
    assert!(taken.bytes_max < 40 << 20, "{} MiB", taken.bytes_max >> 20);
}
