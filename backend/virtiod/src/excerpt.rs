//! The beginning of a text that somebody else chose the length of: a guest, the toolstack, a
//! library.

use std::fmt;

/// Most bytes of a text that is written to XenStore or the log, and shown by `stat`. XenStore takes
/// 4096 for path and value together.
const LONGEST_TEXT: usize = 1024;

/// Most characters of a peer's own words.
const LONGEST_QUOTE: usize = 200;

/// What ends a text that was cut.
const CUT: &str = "…";

/// At most [`LONGEST_TEXT`] bytes of `text`, cut between characters.
pub fn excerpt(text: &str) -> String {
    cut(text, LONGEST_TEXT)
}

fn cut(text: &str, longest: usize) -> String {
    if text.len() <= longest {
        return text.to_owned();
    }
    let room = longest.saturating_sub(CUT.len());
    let end = (0..=room).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    let kept = text.get(..end).unwrap_or_default();
    format!("{kept}{CUT}")
}

/// Words of a peer's, made fit for messages: at most [`LONGEST_QUOTE`] characters, in quotation
/// marks, control characters escaped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quote(String);

impl Quote {
    /// The words `text`.
    pub fn of(text: &str) -> Self {
        let mut kept: String = text.chars().take(LONGEST_QUOTE).collect();
        if kept.len() < text.len() {
            kept.push_str(CUT);
        }
        Self(kept)
    }
}

impl fmt::Display for Quote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_characters_and_a_short_one_is_whole() {
        assert_eq!(excerpt("short"), "short");
        for longest in 3..20 {
            let text = cut("aäöü€uvwxyz0123456789", longest);
            assert!(text.len() <= longest && text.ends_with(CUT), "{text:?}");
        }
        assert!(excerpt(&"ä".repeat(4096)).len() <= LONGEST_TEXT);
    }

    #[test]
    fn a_quote_is_short_and_breaks_no_line() {
        assert_eq!(Quote::of("a\nb\0").to_string(), r#""a\nb\0""#);
        let long = Quote::of(&"x".repeat(10_000)).to_string();
        assert_eq!(long.chars().count(), LONGEST_QUOTE + 3);
    }
}
