//! Checks reports against `tests/bench/report.schema.json`, as far as that schema uses JSON Schema.

use std::fs;

use serde_json::Value;

use super::counts::{Counts, Idle};
use super::latency::Latency;
use super::report::Report;
use super::report::tests::{report, sample};
use super::sample::Sample;
use crate::dirs::Dirs;

/// The keywords of a schema that [`faults`] checks, and those that only explain.
const CHECKED: &[&str] = &[
    "$ref",
    "additionalProperties",
    "anyOf",
    "enum",
    "items",
    "maxItems",
    "maximum",
    "minItems",
    "minimum",
    "properties",
    "required",
    "type",
];
const EXPLAINING: &[&str] = &["$defs", "$schema", "description", "title"];

fn read(name: &str) -> Value {
    let file = Dirs::find().unwrap().tests().join("bench").join(name);
    serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap()
}

/// Returns why `value` does not fit `schema`, a part of `root`; empty if it fits.
fn faults(root: &Value, schema: &Value, value: &Value, place: &str) -> Vec<String> {
    let keywords = schema.as_object().unwrap();
    let check = |(keyword, wanted): (&String, &Value)| -> Vec<String> {
        let fault =
            |fits: bool| if fits { Vec::new() } else { vec![format!("{place}: {keyword}")] };
        let within = |limit: fn(f64, f64) -> bool, size: Option<f64>| {
            fault(size.is_none_or(|size| limit(size, wanted.as_f64().unwrap())))
        };
        let length = value.as_array().map(|items| items.len() as f64);
        match keyword.as_str() {
            "$ref" => {
                let part = root.pointer(wanted.as_str().unwrap().strip_prefix('#').unwrap());
                faults(root, part.unwrap(), value, place)
            }
            "anyOf" => {
                let mut any = wanted.as_array().unwrap().iter();
                fault(any.any(|schema| faults(root, schema, value, place).is_empty()))
            }
            "enum" => fault(wanted.as_array().unwrap().contains(value)),
            "type" => fault(has_type(value, wanted)),
            "minimum" => within(|size, limit| size >= limit, value.as_f64()),
            "maximum" => within(|size, limit| size <= limit, value.as_f64()),
            "minItems" => within(|size, limit| size >= limit, length),
            "maxItems" => within(|size, limit| size <= limit, length),
            "items" => {
                let items = value.as_array().into_iter().flatten().enumerate();
                let each =
                    |(number, item)| faults(root, wanted, item, &format!("{place}/{number}"));
                items.flat_map(each).collect()
            }
            "required" => {
                let names = wanted.as_array().unwrap().iter().map(|name| name.as_str().unwrap());
                fault(
                    value.as_object().is_none_or(|fields| {
                        names.into_iter().all(|name| fields.contains_key(name))
                    }),
                )
            }
            "properties" | "additionalProperties" => {
                let known = keywords.get("properties").and_then(Value::as_object);
                let is_known = |name: &String| known.is_some_and(|known| known.contains_key(name));
                let fields = value.as_object().into_iter().flatten();
                let mine = fields.filter(|(name, _)| is_known(name) == (keyword == "properties"));
                let each = |(name, field): (&String, &Value)| {
                    let place = format!("{place}/{name}");
                    match (keyword.as_str(), wanted) {
                        (_, Value::Bool(allowed)) => {
                            if *allowed {
                                Vec::new()
                            } else {
                                vec![format!("{place}: unknown")]
                            }
                        }
                        ("properties", _) => faults(root, &wanted[name], field, &place),
                        _ => faults(root, wanted, field, &place),
                    }
                };
                mine.flat_map(each).collect()
            }
            other => panic!("the schema uses {other}, which this test does not check"),
        }
    };
    let checked = keywords.iter().filter(|(keyword, _)| !EXPLAINING.contains(&keyword.as_str()));
    checked.flat_map(check).collect()
}

fn has_type(value: &Value, wanted: &Value) -> bool {
    let is = |name: &Value| match name.as_str().unwrap() {
        "array" => value.is_array(),
        "integer" => value.is_i64() || value.is_u64(),
        "null" => value.is_null(),
        "number" => value.is_number(),
        "object" => value.is_object(),
        "string" => value.is_string(),
        other => panic!("unknown type {other}"),
    };
    wanted.as_array().map_or_else(|| is(wanted), |any| any.iter().any(is))
}

fn report_faults(report: &Value) -> Vec<String> {
    let schema = read("report.schema.json");
    faults(&schema, &schema, report, "")
}

/// Returns a report in which no field is empty.
fn full() -> Value {
    let latency = Some(Latency { p50: 1.5, p99: 2.0, p999: 3.0 });
    let ours = Sample { latency, ..sample("read-1m-qd4", "ours", 2.0) };
    let counts = Counts {
        guest: "pv".into(),
        work: "fsync-4k".into(),
        server: "ours".into(),
        requests: 7,
        per_request: [("maps".to_owned(), 0.5)].into(),
    };
    let report = Report {
        machine: vec![("Xen".into(), "4.20".into())],
        counts: vec![counts],
        idle: vec![Idle { guest: "pv".into(), seconds: 10, switches: 3 }],
        ..report(&[ours, sample("read-1m-qd4", "blkback", 1.0)])
    };
    serde_json::to_value(report).unwrap()
}

#[test]
fn written_report_fits_the_schema() {
    assert_eq!(report_faults(&full()), Vec::<String>::new());
}

#[test]
fn baseline_report_fits_the_schema() {
    assert_eq!(report_faults(&read("report.json")), Vec::<String>::new());
}

#[test]
fn changed_reports_do_not_fit() {
    let changed = |place: &str, value: Value| {
        let mut report = full();
        *report.pointer_mut(place).unwrap() = value;
        report_faults(&report)
    };
    for (place, value) in [
        ("/comparisons/0/task/guest", "vax".into()),
        ("/comparisons/0/servers/1/paired", serde_json::json!({"confidence": 2.0})),
        ("/comparisons/0/servers/0/rate", Value::Null),
        ("/counts/0/per_request/maps", "many".into()),
        ("/idle/0/switches", 1.5.into()),
        ("/machine/0", serde_json::json!(["Xen"])),
    ] {
        let faults = changed(place, value);
        assert!(faults.len() == 1 && faults[0].starts_with(place), "{place}: {faults:?}");
    }
    let mut report = full();
    report["colour"] = "red".into();
    assert_eq!(report_faults(&report), ["/colour: unknown"]);
    report.as_object_mut().unwrap().remove("machine");
    assert_eq!(report_faults(&report).len(), 2);
}

#[test]
fn schema_uses_no_keyword_that_is_not_checked() {
    let schema = read("report.schema.json");
    let parts = schema["$defs"].as_object().unwrap().values().chain([&schema]);
    for keyword in parts.flat_map(|part| part.as_object().unwrap().keys()) {
        let known = CHECKED.iter().chain(EXPLAINING).any(|known| known == keyword);
        assert!(known, "{keyword}");
    }
}
