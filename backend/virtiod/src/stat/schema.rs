//! Checks reports against `stat.schema.json`, as far as that uses JSON Schema.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::print;
use crate::sample_report::{PRESENT, full_report};

/// The keywords of a schema that only explain.
const EXPLAINING: [&str; 4] = ["$defs", "$schema", "description", "title"];

/// A schema file, or a part of it.
#[derive(Clone, Copy)]
struct Schema<'s> {
    root: &'s Value,
    part: &'s Value,
}

impl<'s> Schema<'s> {
    fn part(self, part: &'s Value) -> Self {
        Self { part, ..self }
    }

    /// The faults of `value`, which is at `place`; empty if it fits.
    fn faults(self, value: &Value, place: &str) -> Vec<String> {
        let keywords = self.part.as_object().unwrap().iter();
        let checked = keywords.filter(|(keyword, _)| !EXPLAINING.contains(&keyword.as_str()));
        checked.flat_map(|(keyword, wanted)| self.check(keyword, wanted, value, place)).collect()
    }

    fn check(self, keyword: &str, wanted: &'s Value, value: &Value, place: &str) -> Vec<String> {
        let fault = |fits| if fits { Vec::new() } else { vec![format!("{place}: {keyword}")] };
        let length = value.as_array().map_or(0, Vec::len) as u64;
        match keyword {
            "$ref" => {
                let pointer = wanted.as_str().unwrap().strip_prefix('#').unwrap();
                self.part(self.root.pointer(pointer).unwrap()).faults(value, place)
            }
            "anyOf" => {
                let mut any = wanted.as_array().unwrap().iter();
                fault(any.any(|part| self.part(part).faults(value, place).is_empty()))
            }
            "enum" => fault(wanted.as_array().unwrap().contains(value)),
            "type" => fault(match wanted {
                Value::Array(any) => any.iter().any(|name| has_type(value, name)),
                name => has_type(value, name),
            }),
            "minItems" => fault(length >= wanted.as_u64().unwrap()),
            "maxItems" => fault(length <= wanted.as_u64().unwrap()),
            "items" => {
                let items = value.as_array().into_iter().flatten().enumerate();
                let each =
                    |(number, item)| self.part(wanted).faults(item, &format!("{place}/{number}"));
                items.flat_map(each).collect()
            }
            "required" => {
                let names = wanted.as_array().unwrap().iter().map(|name| name.as_str().unwrap());
                let lacks =
                    |name: &&str| value.as_object().is_some_and(|it| !it.contains_key(*name));
                names.filter(lacks).map(|name| format!("{place}: {name} is missing")).collect()
            }
            "properties" => {
                let fields = value.as_object().into_iter().flatten();
                let known = fields.filter_map(|(name, it)| Some((name, it, wanted.get(name)?)));
                let each =
                    |(name, it, part)| self.part(part).faults(it, &format!("{place}/{name}"));
                known.flat_map(each).collect()
            }
            "additionalProperties" => {
                let is_known = |name: &String| self.part["properties"].get(name).is_some();
                let others = value.as_object().into_iter().flatten();
                let others = others.filter(|(name, _)| !is_known(name));
                let each = |(name, it): (&String, &Value)| match wanted {
                    Value::Bool(false) => vec![format!("{place}/{name}: unknown")],
                    part => self.part(part).faults(it, &format!("{place}/{name}")),
                };
                others.flat_map(each).collect()
            }
            other => panic!("the schema uses {other}, which this test does not check"),
        }
    }
}

fn has_type(value: &Value, name: &Value) -> bool {
    match name.as_str().unwrap() {
        "array" => value.is_array(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64(),
        "null" => value.is_null(),
        "object" => value.is_object(),
        "string" => value.is_string(),
        other => panic!("unknown type {other}"),
    }
}

fn faults(report: &Value) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("stat.schema.json");
    let root: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    Schema { root: &root, part: &root }.faults(report, "")
}

/// What `stat --json` prints of a report in which no field is empty.
fn printed() -> Value {
    let mut out = Vec::new();
    print(&mut out, &full_report(), true).unwrap();
    serde_json::from_slice(&out).unwrap()
}

#[test]
fn printed_report_fits_the_schema() {
    let report = printed();
    assert_eq!(faults(&report), Vec::<String>::new());
    let of = |key: &str| -> Vec<_> {
        let devices = report["devices"].as_array().unwrap().iter();
        devices.map(|device| device[key].clone()).collect()
    };
    let filled = |key: &str| of(key).iter().filter(|value| !value.is_null()).count();
    assert_eq!((filled("storage"), filled("latency"), filled("guest")), (2, 3, 1));
    assert_eq!(of("removed").iter().filter(|it| **it == Value::Bool(false)).count(), PRESENT);
}

#[test]
fn changed_reports_do_not_fit() {
    for (place, value) in [
        ("/devices/0/domid", "5".into()),
        ("/devices/0/kind", "floppy".into()),
        ("/devices/0/state", "asleep".into()),
        ("/devices/0/requests/read", (-1).into()),
        ("/devices/0/storage/in_flight", Value::Null),
        ("/devices/0/latency/read/buckets", serde_json::json!([1, 2])),
        ("/devices/0/details/target", 7.into()),
        ("/devices/0/removed", Value::Null),
    ] {
        let mut report = printed();
        *report.pointer_mut(place).unwrap() = value;
        // Within an anyOf, the place is that of its object.
        let found = faults(&report);
        let fault_place = found[0].split(':').next().unwrap();
        assert!(found.len() == 1 && place.starts_with(fault_place), "{place}: {found:?}");
    }
    let mut report = printed();
    report["devices"][0]["colour"] = "red".into();
    assert_eq!(faults(&report), ["/devices/0/colour: unknown"]);
    report["devices"][0].as_object_mut().unwrap().remove("colour");
    report["devices"][0].as_object_mut().unwrap().remove("bytes");
    assert_eq!(faults(&report), ["/devices/0: bytes is missing"]);
}
