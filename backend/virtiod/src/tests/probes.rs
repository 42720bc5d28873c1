//! Tests of the probes in a request's life, by the kernel's own tracer.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};

use object::{Object, ObjectSection, ObjectSegment};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

use super::block::{OK, request};
use super::host::{Host, XVDA, numbered_disk};

/// A domain id that no other test has.
const GUEST: u16 = 777;

/// Traces this program's probes until a line is written to it, and prints the trace. Arguments: an
/// empty directory, the name of the group, and for each probe its event and its definition.
const TRACE: &str = r#"set -e
tracing=$1 group=$2
shift 2
mount -t tracefs tracefs "$tracing"
instance=$tracing/instances/$group
mkdir "$instance"
test -w "$tracing/uprobe_events"
echo tracing
clean_up() {
    echo 0 >"$instance/events/$group/enable"
    rmdir "$instance"
    for event; do
        echo "-:$group/${event%% *}" >>"$tracing/uprobe_events"
    done
}
trap 'clean_up "$@"' EXIT
for event; do
    echo "p:$group/$event" >>"$tracing/uprobe_events"
done
echo 1 >"$instance/events/$group/enable"
echo ready
read -r _
cat "$instance/trace""#;

/// A probe in an executable.
#[derive(Debug, PartialEq, Eq)]
struct Probe {
    name: String,
    /// Its offset in the file.
    offset: u64,
    /// Where its arguments are, as `-8@%rax`.
    arguments: Vec<String>,
}

/// The probes of an executable, from its notes. Source: SystemTap's `sys/sdt.h`.
fn probes(executable: &[u8]) -> Vec<Probe> {
    let file = object::File::parse(executable).unwrap();
    let notes = file.section_by_name(".note.stapsdt").unwrap().data().unwrap();
    let mut rest = notes;
    let mut probes = Vec::new();
    while rest.len() > 12 {
        let word = |at: usize| u32::from_ne_bytes(rest[at..at + 4].try_into().unwrap()) as usize;
        let (name, description) = (word(0).next_multiple_of(4), word(4).next_multiple_of(4));
        let text = &rest[12 + name..12 + name + description];
        let address = u64::from_ne_bytes(text[..8].try_into().unwrap());
        let mut words = text[24..].split(|byte| *byte == 0).map(String::from_utf8_lossy);
        let mut next = || words.next().unwrap().into_owned();
        if next() == "xen_virtiod" {
            let (name, arguments) = (next(), next());
            let holds = |start: u64, size: u64| (start..start + size).contains(&address);
            let segment = file.segments().find(|part| holds(part.address(), part.size())).unwrap();
            let offset = address - segment.address() + segment.file_range().0;
            let arguments = arguments.split(' ').map(str::to_owned).collect();
            probes.push(Probe { name, offset, arguments });
        }
        rest = &rest[12 + name + description..];
    }
    probes
}

/// The kernel's name of the register with an argument.
fn register(argument: &str) -> String {
    let name = argument.strip_prefix("-8@%").unwrap();
    match name.strip_prefix('r') {
        Some(short) if !short.starts_with(|first: char| first.is_ascii_digit()) => {
            format!("%{short}")
        }
        _ => format!("%{name}"),
    }
}

/// The definition of the number-th probe as an event of the kernel's tracer.
fn event(number: usize, probe: &Probe, executable: &str) -> String {
    let Probe { name, offset, arguments } = probe;
    let arguments = arguments.iter().enumerate();
    let arguments: Vec<_> =
        arguments.map(|(at, argument)| format!("a{at}={}:u32", register(argument))).collect();
    format!("{name}_{number} {executable}:{offset:#x} {}", arguments.join(" "))
}

/// Begins to trace; `None` where the kernel does not let this process.
fn trace(events: &[String]) -> Option<Child> {
    let directory = tempfile::tempdir().unwrap().keep();
    let mut child = Command::new("unshare")
        .args(["--mount", "sh", "-c", TRACE, "trace"])
        .arg(&directory)
        .arg(format!("xen_virtiod_{}", std::process::id()))
        .args(events)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.as_mut().unwrap());
    let mut lines = String::new();
    output.read_line(&mut lines).unwrap();
    let has_tracer = lines == "tracing\n";
    if has_tracer {
        output.read_line(&mut lines).unwrap();
    }
    if lines == "tracing\nready\n" {
        return Some(child);
    }
    let ended = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&ended.stderr);
    assert!(!has_tracer, "the tracer refuses the probes: {error}");
    println!("skipped: no tracer: {error}");
    None
}

/// A line of a trace: the probe's name and its arguments.
fn parsed(line: &str) -> (String, Vec<u32>) {
    let (event, arguments) = line.split_once(": (").unwrap();
    let name = event.rsplit(' ').next().unwrap();
    let (name, _) = name.rsplit_once('_').unwrap();
    let arguments = arguments.split(' ').filter_map(|word| word.split_once('=')?.1.parse().ok());
    (name.to_owned(), arguments.collect())
}

#[test]
fn a_requests_life_can_be_traced() {
    let executable = std::env::current_exe().unwrap();
    let probes = probes(&fs::read(&executable).unwrap());
    let names: BTreeSet<_> = probes.iter().map(|probe| probe.name.as_str()).collect();
    let expected = ["request__begin", "request__done", "request__end", "request__wait"];
    assert_eq!(names.into_iter().collect::<Vec<_>>(), expected);
    let path = executable.display().to_string();
    let events: Vec<_> =
        probes.iter().enumerate().map(|(at, probe)| event(at, probe, &path)).collect();
    let Some(mut tracer) = trace(&events) else { return };
    // Other tests' devices are traced too: no other one has this guest.
    let (host, file) = (Host::start(), numbered_disk(64));
    let ends = host.add_disk(GUEST, XVDA, file.path(), "w");
    let mut driver = host.connect(&ends);
    driver.start();
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, 3, &[9; 1024], 0).0, OK);
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 3, &[], 512), (OK, vec![9; 512]));
    driver.close();
    host.remove(&ends);
    host.finish();
    tracer.stdin.take().unwrap().write_all(b"\n").unwrap();
    let mut trace = String::new();
    tracer.stdout.take().unwrap().read_to_string(&mut trace).unwrap();
    assert!(tracer.wait().unwrap().success());
    let thread = format!("{GUEST}-{XVDA}-");
    let is_ours = |line: &&str| line.trim_start().starts_with(&thread);
    let lines: Vec<_> = trace.lines().filter(is_ours).map(parsed).collect();
    let of = |name: &str| {
        let of_name = lines.iter().filter(|(of, _)| of == name);
        of_name.map(|(_, arguments)| arguments.as_slice()).collect::<Vec<_>>()
    };
    // Each is of queue 0, and the driver uses a head again.
    let [write, read] = of("request__begin")[..] else { panic!("{trace}") };
    let (head, end) = (write[1], of("request__end"));
    assert_eq!(write, [0, head, VIRTIO_BLK_T_OUT, 16 + 1024 + 1], "{trace}");
    assert_eq!(read, [0, read[1], VIRTIO_BLK_T_IN, 16 + 512 + 1], "{trace}");
    assert_eq!(end, [&[0, head, 1][..], &[0, read[1], 513]], "{trace}");
    // Storage that is memory answers at once.
    assert_eq!(of("request__wait"), of("request__done"), "{trace}");
}

#[test]
fn script_and_documentation_name_the_probes() {
    let script = include_str!("../../request-times.bt");
    for name in ["request__begin", "request__end"] {
        assert!(script.contains(&format!(":xen_virtiod:{name}\n")), "{name}");
    }
    let readme = include_str!("../../README.md");
    for name in ["request__begin", "request__wait", "request__done", "request__end"] {
        assert!(readme.contains(&format!("| `{name}` |")), "{name}");
    }
}
