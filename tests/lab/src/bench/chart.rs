//! The report as a chart: a row for each work, with a dot for each other server at the ratio of our
//! rate to its rate, on a logarithmic scale.

use std::fmt::Write;

use super::report::{Comparison, Report, Server};
use super::work;

/// The measures of the chart, in pixels.
const WIDTH: f64 = 960.0;
const LEFT: f64 = 300.0;
const RIGHT: f64 = 30.0;
const ROW: f64 = 22.0;
/// The legend's position, the height of its lines, and the space below it.
const LEGEND: f64 = 46.0;
const LEGEND_LINE: f64 = 20.0;
const BELOW_LEGEND: f64 = 38.0;

/// The scale's ends and marks.
const LEAST: f64 = 0.1;
const MOST: f64 = 100.0;
const MARKS: &[f64] = &[0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0];

/// The servers' colours, from a palette that colour-blind readers can distinguish.
const COLOURS: &[(&str, &str)] = &[
    ("blkback", "#0072b2"),
    ("blkback-tuned", "#009e73"),
    ("blkback-netback", "#56b4e9"),
    ("qdisk", "#e69f00"),
    ("virtio-pci", "#cc79a7"),
    ("nvme", "#009e73"),
    ("ahci", "#56b4e9"),
    ("ide", "#d55e00"),
    ("per-access", "#000000"),
    ("netback", "#0072b2"),
    ("e1000", "#d55e00"),
    ("rtl8139", "#e69f00"),
];

/// Draws the chart as SVG.
pub(crate) fn svg(report: &Report) -> String {
    let rows = rows(report);
    let (names, lines) = legend(&rows);
    let top = LEGEND + LEGEND_LINE * lines as f64 + BELOW_LEGEND - LEGEND_LINE;
    let height = top + ROW * rows.len() as f64 + 40.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"20\" y=\"26\" font-size=\"16\" font-weight=\"bold\">How many times as fast \
         xen-virtiod is as others, in the same guest</text>\n"
    );
    // Writing to a string cannot fail.
    svg.push_str(&names);
    let _ = scale(&mut svg, top, height - 40.0);
    for (number, row) in rows.iter().enumerate() {
        let _ = draw(&mut svg, row, top + ROW * (number as f64 + 0.5));
    }
    svg.push_str("</svg>\n");
    svg
}

/// A row of the chart.
enum Row<'a> {
    Heading(String),
    Work(&'a Comparison),
}

fn rows(report: &Report) -> Vec<Row<'_>> {
    let mut rows = Vec::new();
    let mut section = None;
    for comparison in &report.comparisons {
        if !others(comparison).any(|server| server.ratio.is_some()) {
            continue;
        }
        let here = (&comparison.task.guest, &comparison.task.target);
        if section.replace(here) != Some(here) {
            rows.push(Row::Heading(format!(
                "{} guest, {}",
                here.0.to_uppercase(),
                work::target_name(here.1)
            )));
        }
        rows.push(Row::Work(comparison));
    }
    rows
}

/// Returns the other servers, without xen-virtiod with other pool sizes, which only the tables
/// have.
fn others(comparison: &Comparison) -> impl Iterator<Item = &Server> {
    let servers = comparison.servers.iter();
    servers.filter(|server| !server.is_ours() && !server.name.starts_with("pool-"))
}

/// Returns the horizontal position of a ratio on the scale. Ratios beyond its ends are at the ends.
fn place(ratio: f64) -> f64 {
    let part = (ratio.clamp(LEAST, MOST) / LEAST).ln() / (MOST / LEAST).ln();
    LEFT + part * (WIDTH - LEFT - RIGHT)
}

fn colour(server: &Server) -> &'static str {
    COLOURS.iter().find(|(name, _)| *name == server.name).map_or("#555555", |(_, colour)| colour)
}

/// Draws the servers' names and colours; returns the SVG and the number of lines.
fn legend(rows: &[Row<'_>]) -> (String, usize) {
    let shown = rows.iter().filter_map(|row| match row {
        Row::Work(comparison) => Some(others(comparison)),
        Row::Heading(_) => None,
    });
    let mut named: Vec<&Server> = Vec::new();
    for server in shown.flatten() {
        if !named.iter().any(|known| known.name == server.name) {
            named.push(server);
        }
    }
    let (mut svg, mut x, mut line) = (String::new(), 20.0, 0);
    for server in named {
        let name = work::server_name(&server.name);
        let width = 30.0 + 6.5 * name.len() as f64;
        if x + width > WIDTH {
            (x, line) = (20.0, line + 1);
        }
        let (y, colour) = (LEGEND + LEGEND_LINE * line as f64, colour(server));
        // Writing to a string cannot fail.
        let _ = writeln!(
            svg,
            "<circle cx=\"{x}\" cy=\"{y}\" r=\"5\" fill=\"{colour}\"/>\n<text x=\"{}\" y=\"{}\">{name}</text>",
            x + 10.0,
            y + 4.0
        );
        x += width;
    }
    (svg, line + 1)
}

fn scale(svg: &mut String, top: f64, bottom: f64) -> std::fmt::Result {
    for mark in MARKS {
        let (x, one) = (place(*mark), *mark == 1.0);
        let (stroke, width) = if one { ("#000000", 1.5) } else { ("#dddddd", 1.0) };
        writeln!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"{top}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"{stroke}\" \
             stroke-width=\"{width}\"/>"
        )?;
        for y in [top - 8.0, bottom + 16.0] {
            writeln!(svg, "<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{mark}</text>")?;
        }
    }
    Ok(())
}

fn draw(svg: &mut String, row: &Row<'_>, y: f64) -> std::fmt::Result {
    let comparison = match row {
        Row::Heading(text) => {
            let y = y + 4.0;
            return writeln!(svg, "<text x=\"20\" y=\"{y}\" font-weight=\"bold\">{text}</text>");
        }
        Row::Work(comparison) => comparison,
    };
    let key = comparison.task.work.as_str();
    let name = work::find(key).map_or(key, |work| work.name);
    writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{name}</text>",
        LEFT - 12.0,
        y + 4.0
    )?;
    for server in others(comparison) {
        if let Some(ratio) = server.ratio {
            writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{y}\" r=\"5\" fill=\"{}\"><title>{}: {ratio:.2}</title></circle>",
                place(ratio),
                colour(server),
                work::server_name(&server.name)
            )?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::tests::{report, sample};

    #[test]
    fn ratio_is_a_dot_in_the_row_of_its_work() {
        let samples = [sample("read-1m-qd4", "ours", 20.0), sample("read-1m-qd4", "ide", 2.0)];
        let svg = svg(&report(&samples));
        let x = format!("{:.1}", place(10.0));
        for part in [
            "1 MiB sequential read, depth 4",
            "PVH guest, a RAM disk",
            "QEMU's IDE: 10.00",
            x.as_str(),
        ] {
            assert!(svg.contains(part), "{part} is not in {svg}");
        }
        assert_eq!(svg.matches("<title>").count(), 1);
    }

    #[test]
    fn scale_is_logarithmic_and_clamps_at_its_ends() {
        assert_eq!(place(0.001), LEFT);
        assert_eq!(place(1e9), WIDTH - RIGHT);
        let steps = [place(1.0) - place(0.1), place(10.0) - place(1.0)];
        assert!((steps[0] - steps[1]).abs() < 1e-6);
    }

    #[test]
    fn legend_wraps_and_leaves_out_our_pool_sizes() {
        let servers = [
            "ours",
            "blkback",
            "qdisk",
            "virtio-pci",
            "nvme",
            "ahci",
            "ide",
            "netback",
            "e1000",
            "rtl8139",
            "per-access",
            "pool-0",
        ];
        let samples = servers.map(|server| sample("read-1m-qd4", server, 1.0));
        let report = report(&samples);
        let (names, lines) = legend(&rows(&report));
        assert_eq!((lines, names.matches("<circle").count()), (2, servers.len() - 2));
    }

    #[test]
    fn work_without_a_ratio_is_left_out() {
        let samples = [sample("read-1m-qd4", "floor", 20.0)];
        let svg = svg(&report(&samples));
        assert!(!svg.contains("1 MiB"));
    }
}
