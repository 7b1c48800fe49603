//! What the user asks of the result.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// What a run aims at. One planner serves all of them, for one network or several that
/// share weights.
#[derive(Debug, Clone, PartialEq)]
pub enum Goal {
    /// The best model within all of these.
    Limits(Vec<Demand>),
    /// The smallest model whose divergence from the dense one on held-out samples (or the
    /// number that the command prints for it) is at most the bound.
    MaxDrop {
        /// The bound.
        bound: f64,
        /// A command that prints a number for a candidate file.
        eval: Option<String>,
    },
    /// The mask in this file.
    Mask(PathBuf),
}

impl Goal {
    /// The goal of a run that asks for a fraction of the multiply-accumulates.
    pub fn flops(fraction: f64) -> Self {
        Goal::Limits(vec![Demand::Flops(fraction)])
    }

    /// The fraction of the multiply-accumulates, where that is all that is asked for.
    pub fn as_flops(&self) -> Option<f64> {
        match self {
            Goal::Limits(demands) => match demands[..] {
                [Demand::Flops(fraction)] => Some(fraction),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether the latency of candidates must be measured.
    pub fn is_timed(&self) -> bool {
        match self {
            Goal::Limits(demands) => demands.iter().any(|d| d.measure() == Measure::Nanoseconds),
            _ => false,
        }
    }
}

/// As on the command line.
impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Goal::Limits(demands) => {
                let words: Vec<String> = demands.iter().map(Demand::to_string).collect();
                f.write_str(&words.join(" "))
            }
            Goal::MaxDrop { bound, eval } => {
                write!(f, "--max-drop {bound}")?;
                match eval {
                    Some(command) => write!(f, " --eval {command}"),
                    None => Ok(()),
                }
            }
            Goal::Mask(path) => write!(f, "--mask {}", path.display()),
        }
    }
}

impl serde::Serialize for Goal {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// One demand on the result. Several may stand together; all must hold.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Demand {
    /// At most this fraction of the prunable blocks' multiply-accumulates.
    Flops(f64),
    /// At most this fraction of the prunable blocks' parameters.
    Parameters(f64),
    /// At most this many bytes in the written files.
    Size(u64),
    /// At most this fraction of the dense model's latency.
    LatencyFraction(f64),
    /// At most this many milliseconds.
    Latency(f64),
    /// At least this many times as fast as the dense model.
    Speedup(f64),
}

/// What a [`Demand`] counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Multiply-accumulates.
    Macs,
    /// Elements of constants.
    Parameters,
    /// Bytes of the written files.
    Bytes,
    /// Time of one run, in nanoseconds.
    Nanoseconds,
}

impl Demand {
    /// The value of `--flops`: `0.6` or `60%`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn flops(text: &str) -> Result<Self, String> {
        fraction(text).map(Demand::Flops)
    }

    /// The value of `--params`: `0.6` or `60%`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parameters(text: &str) -> Result<Self, String> {
        fraction(text).map(Demand::Parameters)
    }

    /// The value of `--size`: `25MB`, `24MiB`, or bytes.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn size(text: &str) -> Result<Self, String> {
        match bytes(text)? {
            bytes if bytes < 1000 => Err(format!(
                "no model has {bytes} bytes: say the unit, as in {text}MB"
            )),
            bytes => Ok(Demand::Size(bytes)),
        }
    }

    /// The value of `--latency`: `0.6`, `60%`, `12ms`, `800us`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn latency(text: &str) -> Result<Self, String> {
        let (number, unit) = number(text)?;
        let per = match unit.to_ascii_lowercase().as_str() {
            "" | "%" => return fraction(text).map(Demand::LatencyFraction),
            "s" => 1e3,
            "ms" => 1.0,
            "us" | "µs" => 1e-3,
            "ns" => 1e-6,
            _ => {
                return Err(format!(
                    "'{unit}' is no unit of time: say s, ms or us, or a fraction"
                ));
            }
        };
        if number > 0.0 {
            Ok(Demand::Latency(number * per))
        } else {
            Err("a latency is above 0".into())
        }
    }

    /// The value of `--speedup`: `2x` or `2`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn speedup(text: &str) -> Result<Self, String> {
        let (number, unit) = number(text)?;
        match unit {
            "" | "x" | "X" if number >= 1.0 => Ok(Demand::Speedup(number)),
            "" | "x" | "X" => Err("a speed-up is 1 or more, as in 2x".into()),
            _ => Err(format!("'{unit}' is no unit of a speed-up: say 2x")),
        }
    }

    /// What it counts.
    pub fn measure(self) -> Measure {
        match self {
            Demand::Flops(_) => Measure::Macs,
            Demand::Parameters(_) => Measure::Parameters,
            Demand::Size(_) => Measure::Bytes,
            Demand::LatencyFraction(_) | Demand::Latency(_) | Demand::Speedup(_) => Measure::Nanoseconds,
        }
    }

    /// The most that the whole model may cost when the dense one costs `full`
    /// and the one with every prunable block empty costs `base`.
    pub fn most(self, base: u64, full: u64) -> u64 {
        let prunable = full.saturating_sub(base) as f64;
        match self {
            Demand::Flops(f) | Demand::Parameters(f) => {
                base.saturating_add((f * prunable).floor() as u64).min(full)
            }
            Demand::Size(bytes) => bytes,
            Demand::LatencyFraction(f) => (f * full as f64).floor() as u64,
            Demand::Latency(ms) => (ms * 1e6).floor() as u64,
            Demand::Speedup(s) => (full as f64 / s).floor() as u64,
        }
    }

    /// This kind of target for a model that costs `cost`: what is got, or what
    /// the least is.
    pub fn at(self, cost: u64, base: u64, full: u64) -> Self {
        let share = |of: u64, all: u64| of as f64 / all.max(1) as f64;
        let prunable = share(cost.saturating_sub(base), full.saturating_sub(base));
        match self {
            Demand::Flops(_) => Demand::Flops(prunable),
            Demand::Parameters(_) => Demand::Parameters(prunable),
            Demand::Size(_) => Demand::Size(cost),
            Demand::LatencyFraction(_) => Demand::LatencyFraction(share(cost, full)),
            Demand::Latency(_) => Demand::Latency(cost as f64 / 1e6),
            Demand::Speedup(_) => Demand::Speedup(share(full, cost)),
        }
    }

    /// The number of this target, in its own unit: a fraction, bytes,
    /// milliseconds, times.
    pub fn value(self) -> f64 {
        match self {
            Demand::Flops(v)
            | Demand::Parameters(v)
            | Demand::LatencyFraction(v)
            | Demand::Latency(v)
            | Demand::Speedup(v) => v,
            Demand::Size(v) => v as f64,
        }
    }

    /// A round value next to this one that asks for a little less: what to
    /// suggest where this one is the least that can be reached.
    pub fn eased(self) -> Self {
        let up = |v: f64, places: f64| (v * places).ceil() / places;
        match self {
            Demand::Flops(v) => Demand::Flops(up(v, 1e3)),
            Demand::Parameters(v) => Demand::Parameters(up(v, 1e3)),
            Demand::LatencyFraction(v) => Demand::LatencyFraction(up(v, 1e3)),
            Demand::Latency(v) => Demand::Latency(up(v, 1e3)),
            Demand::Speedup(v) => Demand::Speedup((v * 1e3).floor() / 1e3),
            Demand::Size(v) => Demand::Size(v.div_ceil(10_000).saturating_mul(10_000)),
        }
    }

    /// The name of its option on the command line.
    pub fn option(self) -> &'static str {
        match self {
            Demand::Flops(_) => "flops",
            Demand::Parameters(_) => "params",
            Demand::Size(_) => "size",
            Demand::LatencyFraction(_) | Demand::Latency(_) => "latency",
            Demand::Speedup(_) => "speedup",
        }
    }

    /// The value as it is written on the command line.
    pub fn amount(self) -> String {
        match self {
            Demand::Flops(v) | Demand::Parameters(v) | Demand::LatencyFraction(v) => trimmed(v, 4),
            Demand::Size(v) if v >= 10_000 => format!("{}MB", trimmed(v as f64 / 1e6, 3)),
            Demand::Size(v) => v.to_string(),
            Demand::Latency(v) => format!("{}ms", trimmed(v, 4)),
            Demand::Speedup(v) => format!("{}x", trimmed(v, 3)),
        }
    }
}

/// As on the command line: `--size 25MB`.
impl fmt::Display for Demand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--{} {}", self.option(), self.amount())
    }
}

/// From `name=value` with the name of the option: `flops=0.6`.
impl FromStr for Demand {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text
            .split_once('=')
            .ok_or_else(|| format!("'{text}': expected NAME=VALUE as in flops=0.6"))?;
        match name.trim() {
            "flops" => Demand::flops(value),
            "params" => Demand::parameters(value),
            "size" => Demand::size(value),
            "latency" => Demand::latency(value),
            "speedup" => Demand::speedup(value),
            other => Err(format!(
                "'{other}' is no budget: there are flops, params, size, latency, speedup"
            )),
        }
    }
}

/// Without zeros at the end.
fn trimmed(value: f64, places: usize) -> String {
    let text = format!("{value:.places$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => text,
    }
}

/// A number and what follows it.
fn number(text: &str) -> Result<(f64, &str), String> {
    let text = text.trim();
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let number: f64 = digits
        .parse()
        .map_err(|_| format!("'{text}' does not start with a number"))?;
    Ok((number, unit.trim()))
}

fn fraction(text: &str) -> Result<f64, String> {
    let (number, unit) = number(text)?;
    let value = match unit {
        "" => number,
        "%" => number / 100.0,
        _ => return Err(format!("'{unit}' is no unit of a fraction: say 0.6 or 60%")),
    };
    if value > 0.0 && value <= 1.0 {
        Ok(value)
    } else {
        Err("it is the fraction to keep, above 0 and at most 1".into())
    }
}

fn bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = number(text)?;
    let per: f64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        _ => {
            return Err(format!(
                "'{unit}' is no unit of bytes: say kB, MB, GB, KiB, MiB or GiB"
            ));
        }
    };
    let value = (number * per).floor();
    if unit.is_empty() && number.fract() != 0.0 {
        return Err("a size is in bytes or has a unit, as in 25MB".into());
    }
    // Beyond 2^53 neighbouring numbers of bytes look the same.
    if (1.0..9.0e15).contains(&value) {
        Ok(value as u64)
    } else {
        Err("it is no size of a file".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_with_their_units() {
        assert_eq!(Demand::flops("0.6"), Ok(Demand::Flops(0.6)));
        assert_eq!(Demand::flops("60%"), Ok(Demand::Flops(0.6)));
        assert_eq!(Demand::parameters("1"), Ok(Demand::Parameters(1.0)));
        assert_eq!(Demand::size("25MB"), Ok(Demand::Size(25_000_000)));
        assert_eq!(Demand::size("1.5 MiB"), Ok(Demand::Size(1_572_864)));
        assert_eq!(Demand::size("1024"), Ok(Demand::Size(1024)));
        assert_eq!(Demand::latency("12ms"), Ok(Demand::Latency(12.0)));
        assert_eq!(Demand::latency("800us"), Ok(Demand::Latency(0.8)));
        assert_eq!(Demand::latency("0.5"), Ok(Demand::LatencyFraction(0.5)));
        assert_eq!(Demand::speedup("2x"), Ok(Demand::Speedup(2.0)));
        assert_eq!("size=3kB".parse(), Ok(Demand::Size(3000)));
        for wrong in [
            "flops=0",
            "flops=1.5",
            "flops=nan",
            "flops=-1",
            "flops=0.6x",
            "size=0.5",
            "size=3 pages",
            "size=99999999999999999999",
            "size=",
            "latency=0ms",
            "latency=3min",
            "speedup=0.5",
            "speedup=2ms",
            "weight=3",
            "0.6",
        ] {
            assert!(wrong.parse::<Demand>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for text in [
            "flops=0.6",
            "params=0.25",
            "size=25MB",
            "latency=12.5ms",
            "speedup=2x",
        ] {
            let target: Demand = text.parse().unwrap();
            assert_eq!(target.to_string(), format!("--{}", text.replace('=', " ")));
        }
    }

    #[test]
    fn limits_and_what_is_got_agree() {
        assert_eq!(Demand::Flops(0.5).most(100, 301), 200);
        assert_eq!(Demand::Speedup(2.0).most(100, 301), 150);
        assert_eq!(Demand::Latency(0.5).most(0, 9), 500_000);
        for target in [
            Demand::Flops(0.3),
            Demand::LatencyFraction(0.7),
            Demand::Speedup(1.7),
        ] {
            let (base, full) = (1_000_000, 9_000_000);
            let got = target.at(target.most(base, full), base, full);
            assert!((got.value() - target.value()).abs() < 1e-5, "{target} {got}");
            // Asking for what was got gives it again.
            assert!(got.eased().most(base, full) >= target.most(base, full));
        }
    }
}
