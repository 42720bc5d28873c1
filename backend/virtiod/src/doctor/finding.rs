//! The result of a check.

use serde::Serialize;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// All is well.
    Ok,
    /// The check could not look.
    Unknown,
    /// Devices are served, but slower or less safely, or something is lost later.
    Warning,
    /// Devices are not served.
    Error,
}

impl Severity {
    /// The word that begins a line.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One fact about the host, for an administrator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// The fact, and its consequence.
    pub text: String,
    /// Commands that mend it, each for one line of a shell, or for the file that it names.
    pub mend: Vec<String>,
}

impl Finding {
    fn new(severity: Severity, text: impl Into<String>) -> Self {
        Self { severity, text: text.into(), mend: Vec::new() }
    }

    pub(super) fn ok(text: impl Into<String>) -> Self {
        Self::new(Severity::Ok, text)
    }

    pub(super) fn unknown(text: impl Into<String>) -> Self {
        Self::new(Severity::Unknown, text)
    }

    pub(super) fn warning(text: impl Into<String>) -> Self {
        Self::new(Severity::Warning, text)
    }

    pub(super) fn error(text: impl Into<String>) -> Self {
        Self::new(Severity::Error, text)
    }

    /// Something that only root may look at.
    pub(super) fn root_only(what: &str) -> Self {
        Self::unknown(format!("{what}: only root may look")).mend("sudo xen-virtiod doctor")
    }

    /// Adds a command that mends it.
    pub(super) fn mend(mut self, command: impl Into<String>) -> Self {
        self.mend.push(command.into());
        self
    }
}
