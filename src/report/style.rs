//! Colours of the terminal.

/// Whether and how text is coloured.
#[derive(Debug, Clone, Copy, Default)]
pub struct Style {
    colour: bool,
    /// Columns that a line may have; 0 for any number.
    columns: usize,
}

/// What every terminal has.
const COLUMNS: usize = 80;

/// What a text is.
#[derive(Debug, Clone, Copy)]
pub enum Ink {
    /// A headline.
    Strong,
    /// What matters less.
    Dim,
    /// Attention heads.
    Heads,
    /// Neurons.
    Neurons,
    /// What should be read.
    Warning,
}

impl Style {
    /// No colours.
    pub fn plain() -> Self {
        Self::default()
    }

    /// Colours on a terminal, unless `NO_COLOR` is set or the terminal is dumb.
    pub fn of(is_terminal: bool) -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|v| v == "dumb");
        Style {
            colour: is_terminal && !set("NO_COLOR") && !dumb,
            columns: if is_terminal { COLUMNS } else { 0 },
        }
    }

    /// A line in as many lines as the terminal needs, those after the first one indented by
    /// so many columns. What goes to a file or another program stays one line.
    pub fn wrap(self, line: &str, indent: usize) -> String {
        if self.columns == 0 || visible(line) <= self.columns {
            return line.to_owned();
        }
        let lead = line.len() - line.trim_start().len();
        let mut out = line[..lead].to_owned();
        let mut at = lead;
        let mut gap = "";
        for word in line[lead..].split_inclusive(' ') {
            let (text, space) = word.strip_suffix(' ').map_or((word, ""), |text| (text, " "));
            if at > indent && at + gap.len() + visible(text) > self.columns {
                out.push('\n');
                out.push_str(&" ".repeat(indent));
                at = indent;
            } else {
                out.push_str(gap);
                at += gap.len();
            }
            out.push_str(text);
            at += visible(text);
            gap = space;
        }
        out
    }

    /// The text in its colour.
    pub fn paint(self, ink: Ink, text: &str) -> String {
        if !self.colour || text.is_empty() {
            return text.to_owned();
        }
        let code = match ink {
            Ink::Strong => "1",
            Ink::Dim => "2",
            Ink::Heads => "34",
            Ink::Neurons => "36",
            Ink::Warning => "33",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// The columns that a text takes, which colours do not.
fn visible(text: &str) -> usize {
    let mut count = 0;
    let mut hidden = false;
    for c in text.chars() {
        match (hidden, c) {
            (false, '\x1b') => hidden = true,
            (true, 'm') => hidden = false,
            (false, _) => count += 1,
            (true, _) => {}
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_break_between_words_on_a_terminal_only() {
        let line = format!("  \x1b[33mnote:\x1b[0m {}", "seven77 ".repeat(20).trim_end());
        assert_eq!(Style::plain().wrap(&line, 4), line);
        let narrow = Style {
            colour: true,
            columns: 80,
        };
        let wrapped = narrow.wrap(&line, 4);
        assert!(wrapped.lines().all(|l| visible(l) <= 80));
        assert!(wrapped.lines().skip(1).all(|l| l.starts_with("    seven77")));
        let words = |text: &str| text.split_whitespace().map(String::from).collect::<Vec<_>>();
        assert_eq!(words(&wrapped), words(&line));
        assert_eq!(narrow.wrap("short   as it is", 4), "short   as it is");
    }
}
