//! Selects package sources: the Debian mirror that the host's apt uses.

use std::process::Command;

use super::Suite;
use crate::command;

/// The keys that must have signed the package lists.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The format of apt's list: a line for each source of the host, with origin, label and address.
const FORMAT: &str = "$(ORIGIN)|$(LABEL)|$(REPO_URI)";

/// Returns the lines of a sources.list for `suite`, or no lines if the host's apt has no Debian
/// source: mmdebstrap then uses its default.
pub(crate) fn sources(suite: Suite) -> Vec<String> {
    let mut list = Command::new("apt-get");
    list.args(["indextargets", "--format", FORMAT, "Created-By: Packages"]);
    match command::output(&mut list, "listing apt's sources") {
        Ok(targets) => sources_from(&targets, suite),
        Err(_) => Vec::new(),
    }
}

/// Returns options that make mmdebstrap use the proxy of the host's apt, if any.
pub(crate) fn proxy_options() -> Vec<String> {
    let mut dump = Command::new("apt-config");
    dump.args(["dump", "--no-empty", "Acquire"]);
    let config = command::output(&mut dump, "reading apt's configuration").unwrap_or_default();
    config
        .lines()
        .filter(|line| line.contains("::Proxy"))
        .map(|line| format!("--aptopt={line}"))
        .collect()
}

/// Returns mmdebstrap's options for `suite`. The lists of sid expire after a week, and a mirror may
/// keep an older snapshot of sid, so apt must not check their date. It still checks the signature.
pub(crate) fn suite_options(suite: Suite) -> &'static [&'static str] {
    if suite.is_released() { &[] } else { &["--aptopt=Acquire::Check-Valid-Until \"false\""] }
}

fn sources_from(targets: &str, suite: Suite) -> Vec<String> {
    let Some(main) = find(targets, "Debian", "/debian/") else {
        return Vec::new();
    };
    let mut lines = vec![line(&main, suite.name())];
    if suite.is_released() {
        lines.push(line(&main, &format!("{suite}-updates")));
        if let Some(security) = find(targets, "Debian-Security", "/debian-security/") {
            lines.push(line(&security, &format!("{suite}-security")));
        }
    }
    lines
}

fn line(uri: &str, suite: &str) -> String {
    format!("deb [signed-by={KEYRING}] {uri} {suite} main")
}

/// Returns the first address whose lists have Debian's label `label`. If apt has no lists yet, it
/// does not know the label; the function then compares the end of the address with `usual_end`.
fn find(targets: &str, label: &str, usual_end: &str) -> Option<String> {
    targets.lines().find_map(|line| {
        let mut fields = line.split('|');
        let (origin, its_label, uri) = (fields.next()?, fields.next()?, fields.next()?);
        let labelled = origin == "Debian" && its_label == label;
        let unlabelled = !uri.is_empty() && origin.is_empty() && uri.ends_with(usual_end);
        let fetchable = uri.starts_with("http://") || uri.starts_with("https://");
        (fetchable && (labelled || unlabelled)).then(|| uri.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_debian_mirrors_are_used() {
        let lines = sources_from(
            "Other|Other|https://packages.example/apt/\n\
             Debian|Debian|http://mirror.example/debian/\n\
             Debian|Debian-Security|http://mirror.example/debian-security/\n",
            Suite::Trixie,
        );
        let expected = [
            ("/debian/", "trixie"),
            ("/debian/", "trixie-updates"),
            ("/debian-security/", "trixie-security"),
        ];
        assert_eq!(lines.len(), expected.len());
        for (line, (path, suite)) in lines.iter().zip(expected) {
            let wanted = format!(" http://mirror.example{path} {suite} main");
            assert!(line.ends_with(&wanted), "{line}");
            assert!(line.contains("signed-by=/"), "{line}");
        }
    }

    #[test]
    fn unlabelled_source_is_chosen_by_its_address() {
        let targets = "||http://mirror.example/debian/\n||http://else.example/x/\n";
        let lines = sources_from(targets, Suite::Bookworm);
        assert_eq!(lines.len(), 2);
        assert!(lines[0].ends_with("http://mirror.example/debian/ bookworm main"));
    }

    #[test]
    fn sid_has_no_updates_suite() {
        let targets = "Debian|Debian|http://mirror.example/debian/\n\
                       Debian|Debian-Security|http://mirror.example/debian-security/\n";
        let lines = sources_from(targets, Suite::Sid);
        assert_eq!(lines.len(), 1);
        assert!(lines[0].ends_with(" sid main"));
    }

    #[test]
    fn host_without_debian_sources_gives_no_lines() {
        for targets in [
            "Ubuntu|Ubuntu|http://mirror.example/ubuntu/\n",
            "Debian|Debian|cdrom://disc/debian/\n",
            "nonsense\n\n",
        ] {
            assert!(sources_from(targets, Suite::LAB).is_empty());
        }
    }
}
