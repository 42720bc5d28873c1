//! Checks that errors do not print their cause: [`crate::Causes`] does, once.

use std::fs;
use std::path::Path;

use super::source_files::rust_files;

/// The folders whose errors users see.
const FOLDERS: [&str; 2] = ["backend", "guest-shim"];

/// An error variant: its message and the source text of its fields.
struct Variant<'t> {
    message: &'t str,
    fields: &'t str,
}

/// All variants and structs of a file that have a message.
fn variants(text: &str) -> Vec<Variant<'_>> {
    let parts = text.split("#[error(").skip(1);
    let variants = parts.filter_map(|part| {
        let (message, rest) = part.split_once(")]\n")?;
        let end =
            rest.find("///").unwrap_or(rest.len()).min(rest.find("\n}").unwrap_or(rest.len()));
        let fields = rest.get(..end)?;
        // Documented fields of a variant continue after their comments.
        let fields = if fields.contains('{') { rest.split("},").next()? } else { fields };
        Some(Variant { message, fields })
    });
    variants.collect()
}

/// The format placeholder that would print the cause, if the variant has one.
fn cause(fields: &str) -> Option<String> {
    if fields.contains("source:") {
        return Some("{source".to_owned());
    }
    let before = fields.split_once("#[from]").or_else(|| fields.split_once("#[source]"))?.0;
    let position = before.matches(',').count();
    Some(format!("{{{position}"))
}

#[test]
fn no_error_prints_its_cause() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut files = Vec::new();
    FOLDERS.iter().for_each(|folder| files.extend(rust_files(&root.join(folder))));
    let mut with_cause = 0;
    for file in files.iter().filter(|file| !file.ends_with("causes.rs") && !file.ends_with(file!()))
    {
        let text = fs::read_to_string(file).unwrap();
        for Variant { message, fields } in variants(&text) {
            let Some(cause) = cause(fields) else { continue };
            with_cause += 1;
            assert!(!message.contains(&cause), "{}: {message}", file.display());
        }
    }
    assert!(with_cause > 40, "{with_cause} variants have a cause");
}

#[test]
fn variant_that_prints_its_cause_is_found() {
    let text = "#[error(\"cannot read {path}: {source}\")]\nRead {\n/// The path.\npath: P,\n\
                source: io::Error },\n#[error(\"no {0}: {1}\")]\nNo(&'static str, #[from] E),\n\
                #[error(\"just {0}\")]\nJust(u32),\n}";
    let found: Vec<_> = variants(text)
        .iter()
        .map(|variant| cause(variant.fields).is_some_and(|cause| variant.message.contains(&cause)))
        .collect();
    assert_eq!(found, [true, true, false]);
}
