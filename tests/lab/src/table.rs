//! Plain text tables for people.

/// Formats `rows` as text columns. The first row is the heading, the first column has the labels.
/// A cell can have several lines.
pub(crate) fn format(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.flat_map(|cell| cell.lines()).map(width).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        push_row(&mut text, row, &widths);
        if number == 0 {
            let rule: Vec<String> = widths.iter().map(|width| "─".repeat(*width)).collect();
            push_line(&mut text, &rule.iter().map(String::as_str).collect::<Vec<_>>(), &widths);
        }
    }
    text
}

fn push_row(text: &mut String, row: &[String], widths: &[usize]) {
    let height = row.iter().map(|cell| cell.lines().count()).max().unwrap_or(0);
    for line in 0..height {
        let cells: Vec<&str> =
            row.iter().map(|cell| cell.lines().nth(line).unwrap_or_default()).collect();
        push_line(text, &cells, widths);
    }
}

fn push_line(text: &mut String, cells: &[&str], widths: &[usize]) {
    let mut line = String::new();
    for (cell, column) in cells.iter().zip(widths) {
        line.push_str(cell);
        line.push_str(&" ".repeat(column - width(cell) + 2));
    }
    text.push_str(line.trim_end());
    text.push('\n');
}

fn width(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_line() {
        let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect();
        let table = format(&[
            row(&["", "PV", "PVH"]),
            row(&["features", "ONE\nTWO_TWO", "ONE"]),
            row(&["time", "4 s", "9 s"]),
        ]);
        let expected = "          PV       PVH\n\
                        ────────  ───────  ───\n\
                        features  ONE      ONE\n          \
                                  TWO_TWO\n\
                        time      4 s      9 s\n";
        assert_eq!(table, expected);
    }

    #[test]
    fn empty_table_is_an_empty_string() {
        assert_eq!(format(&[]), "");
    }
}
