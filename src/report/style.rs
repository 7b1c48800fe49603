//! Colours of the terminal.

/// Whether and how text is coloured.
#[derive(Debug, Clone, Copy, Default)]
pub struct Style {
    colour: bool,
}

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
        }
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
