//! Writes the man pages and completions of `xen-virtiod`: `documents CONFIGURATION DIRECTORY`.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Command, CommandFactory, Parser, ValueEnum};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use command_line::CommandLine;

/// The section of programs for administrators.
const PROGRAMS: &str = "8";

/// The section of files.
const FILES: &str = "5";

/// The title of both sections' pages.
const MANUAL: &str = "Virtio devices for Xen guests";

/// The shells whose completions are written.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

/// Writes man pages and completions of xen-virtiod.
#[derive(Parser)]
struct Arguments {
    /// The example configuration that explains every key, xen-virtiod.toml.
    configuration: PathBuf,
    /// The directory to write to, which is made.
    directory: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match write_all(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("documents: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write_all(arguments: &Arguments) -> std::io::Result<()> {
    let directory = &arguments.directory;
    fs::create_dir_all(directory)?;
    // `help` is a command of its own, and each of its commands would have a page.
    let mut program = CommandLine::command().disable_help_subcommand(true);
    program.build();
    for (name, page) in pages(&program)? {
        fs::write(directory.join(name), page)?;
    }
    let example = fs::read_to_string(&arguments.configuration)?;
    fs::write(directory.join("xen-virtiod.toml.5"), configuration_page(&example)?)?;
    SHELLS.into_iter().try_for_each(|shell| complete(shell, directory))
}

/// The pages of the program and of its commands, with their files' names.
fn pages(program: &Command) -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let commands = program.get_subcommands().filter(|command| !command.is_hide_set());
    std::iter::once(program).chain(commands).map(program_page).collect()
}

fn program_page(command: &Command) -> std::io::Result<(String, Vec<u8>)> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let page = Man::new(command.clone())
        .title(name.to_uppercase())
        .section(PROGRAMS)
        .source(concat!("xen-virtiod ", env!("CARGO_PKG_VERSION")))
        .manual(MANUAL);
    let mut bytes = Vec::new();
    page.render(&mut bytes)?;
    let mut ending = Roff::new();
    ending.control("SH", ["SEE ALSO"]);
    ending.text([bold("xen-virtiod"), roman("(8), "), bold("xen-virtiod.toml"), roman("(5)")]);
    ending.to_writer(&mut bytes)?;
    Ok((format!("{name}.{PROGRAMS}"), bytes))
}

/// The page of the configuration file: the text at the example's beginning, then the example.
fn configuration_page(example: &str) -> std::io::Result<Vec<u8>> {
    let (text, keys) = example.split_once("\n\n").unwrap_or((example, ""));
    let mut page = Roff::new();
    page.control("TH", ["XEN-VIRTIOD.TOML", FILES, "", "", MANUAL]);
    page.control("SH", ["NAME"]);
    page.text([roman("xen-virtiod.toml - settings of xen-virtiod")]);
    page.control("SH", ["DESCRIPTION"]);
    for paragraph in text.split("\n#\n") {
        let paragraph = Paragraph::of(paragraph);
        page.control("PP", []);
        match paragraph {
            Paragraph::Text(text) => page.text([roman(text)]),
            Paragraph::Literal(text) => literal(&mut page, &text),
        };
    }
    page.control("SH", ["EXAMPLE WITH EVERY KEY"]);
    literal(&mut page, keys);
    page.control("SH", ["SEE ALSO"]);
    page.text([bold("xen-virtiod"), roman("(8)")]);
    let mut bytes = Vec::new();
    page.to_writer(&mut bytes)?;
    Ok(bytes)
}

/// A paragraph of the comment at the beginning of the example.
enum Paragraph {
    /// Filled by the reader's program.
    Text(String),
    /// Indented in the comment.
    Literal(String),
}

impl Paragraph {
    fn of(comment: &str) -> Self {
        let lines: Vec<_> =
            comment.lines().map(|line| line.trim_start_matches('#').trim_end()).collect();
        match lines.iter().all(|line| line.starts_with("     ")) {
            true => Paragraph::Literal(lines.join("\n")),
            false => {
                let words: Vec<_> = lines.iter().map(|line| line.trim()).collect();
                Paragraph::Text(words.join(" "))
            }
        }
    }
}

fn literal<'a>(page: &'a mut Roff, text: &str) -> &'a mut Roff {
    page.control("nf", []);
    for line in text.lines() {
        page.text([roman(if line.is_empty() { " " } else { line })]);
    }
    page.control("fi", [])
}

fn complete(shell: Shell, directory: &Path) -> std::io::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut CommandLine::command(), "xen-virtiod", &mut script);
    let name = shell.to_possible_value().map(|value| value.get_name().to_owned());
    let name = format!("xen-virtiod.{}", name.unwrap_or_default());
    fs::write(directory.join(name), script)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> String {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../virtiod/xen-virtiod.toml");
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn every_command_has_a_page_with_its_options() {
        let directory = tempfile::tempdir().unwrap();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../virtiod/xen-virtiod.toml");
        let directory = directory.path().to_owned();
        write_all(&Arguments { configuration: path.into(), directory: directory.clone() }).unwrap();
        let commands = CommandLine::command();
        let mut visible = 0;
        for command in commands.get_subcommands().filter(|command| !command.is_hide_set()) {
            let name = command.get_name();
            let page = fs::read_to_string(directory.join(format!("xen-virtiod-{name}.8"))).unwrap();
            for option in command.get_arguments().filter_map(|option| option.get_long()) {
                assert!(page.contains(&option.replace('-', "\\-")), "{name}: {option}");
            }
            visible += 1;
        }
        let written = fs::read_dir(&directory).unwrap().count();
        // The program's own, the configuration's, and three shells'.
        assert_eq!(written, visible + 2 + SHELLS.len());
    }

    #[test]
    fn configuration_page_has_every_line_of_the_example() {
        let page = String::from_utf8(configuration_page(&example()).unwrap()).unwrap();
        let (_, keys) = example().split_once("\n\n").map(|(a, b)| (a.len(), b.to_owned())).unwrap();
        let sections = keys.lines().filter(|line| line.starts_with('['));
        for section in sections {
            assert!(page.contains(section.split(['-', '"']).next().unwrap()), "{section}");
        }
        assert!(page.contains("\n.SH DESCRIPTION\n") && page.contains("xen\\-virtiod check"));
    }
}
