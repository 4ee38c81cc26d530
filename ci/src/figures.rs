//! What a benchmark prints: one JSON object a line, the same for every benchmark of the project.
//!
//! ```json
//! {"figure":"boot_ready","value":0.9,"unit":"s","peer":"bare init","peer_value":0.8,"ratio":1.125,"better":"lower",
//!  "goal":1.15,"runs":7,"min":0.88,"max":0.97,"ratio_min":1.05,"ratio_max":1.2}
//! ```
//!
//! `value` and `peer_value` are medians; `ratio` is ours over the peer's, and `goal` is what the ratio should not
//! pass; `min` and `max` are of our values, `ratio_min` and `ratio_max` of the ratios of each pair of runs. Ours and the peer's runs are interleaved, so that a machine that is slow for a while is slow for both.
//! A peer that cannot be had makes a line with `"skipped": "why"` instead. What has a budget and no peer is compared
//! with the budget.

use std::{borrow::Cow, fmt::Write as _, io::Write as _, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

/// Which direction is the good one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    /// Times, sizes.
    Lower,
    /// Rates.
    Higher,
}

/// What is measured, and against what.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    /// Its name, `snake_case`.
    pub(crate) name: Cow<'static, str>,
    /// `s`, `MiB/s`, `MB`, …
    pub(crate) unit: &'static str,
    /// What it is compared with.
    pub(crate) peer: &'static str,
    /// Which direction is good.
    pub(crate) better: Better,
    /// The ratio that should be kept, if there is a goal.
    pub(crate) goal: Option<f64>,
}

/// The values of a figure's runs, in the order they were taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples {
    /// Ours.
    pub(crate) ours: Vec<f64>,
    /// The peer's.
    pub(crate) peer: Vec<f64>,
}

impl Samples {
    /// One pair of runs on `bench`; whose turn is first alternates, so that neither always runs on a warm machine.
    pub(crate) fn pair<B>(
        &mut self,
        bench: &mut B,
        ours: impl FnOnce(&mut B) -> Result<f64>,
        peer: impl FnOnce(&mut B) -> Result<f64>,
    ) -> Result<()> {
        if self.ours.len().is_multiple_of(2) {
            self.ours.push(ours(bench)?);
            self.peer.push(peer(bench)?);
        } else {
            self.peer.push(peer(bench)?);
            self.ours.push(ours(bench)?);
        }
        Ok(())
    }

    /// A single value against a budget.
    pub(crate) fn against_budget(value: f64, budget: f64) -> Samples {
        Samples { ours: vec![value], peer: vec![budget] }
    }
}

impl Figure {
    /// Prints the line of this figure on stdout, and a note on stderr when the goal was missed.
    pub(crate) fn print(&self, samples: &Samples) -> Result<()> {
        let line = self.line(samples)?;
        if self.misses_goal(&line) {
            eprintln!(
                "bench: {} misses its goal: the ratio is {}, the goal {}",
                self.name, line["ratio"], line["goal"]
            );
        }
        print_line(&line)
    }

    /// Prints the line that says why there is no comparison. Our own value is given if it could be measured.
    pub(crate) fn print_skipped(&self, ours: &[f64], why: &str) -> Result<()> {
        let mut line = self.head(ours);
        line.insert("peer".into(), json!(self.peer));
        line.insert("skipped".into(), json!(why));
        print_line(&Value::Object(line))
    }

    fn line(&self, samples: &Samples) -> Result<Value> {
        let ours = median(&samples.ours).with_context(|| format!("{} was never measured", self.name))?;
        let peer = median(&samples.peer).with_context(|| format!("the peer of {} was never measured", self.name))?;
        let mut line = self.head(&samples.ours);
        line.insert("peer".into(), json!(self.peer));
        line.insert("peer_value".into(), round(peer));
        line.insert("ratio".into(), round(ours / peer));
        line.insert("better".into(), json!(self.better.word()));
        line.insert("goal".into(), self.goal.map_or(Value::Null, round));
        line.insert("runs".into(), json!(samples.ours.len()));
        let fold = |pick: fn(f64, f64) -> f64| samples.ours.iter().copied().reduce(pick).map_or(Value::Null, round);
        line.insert("min".into(), fold(f64::min));
        line.insert("max".into(), fold(f64::max));
        let ratios = samples.ours.iter().zip(&samples.peer).map(|(ours, peer)| ours / peer);
        line.insert("ratio_min".into(), ratios.clone().reduce(f64::min).map_or(Value::Null, round));
        line.insert("ratio_max".into(), ratios.reduce(f64::max).map_or(Value::Null, round));
        Ok(Value::Object(line))
    }

    fn head(&self, ours: &[f64]) -> Map<String, Value> {
        let mut line = Map::new();
        line.insert("figure".into(), json!(self.name));
        if let Some(value) = median(ours) {
            line.insert("value".into(), round(value));
        }
        line.insert("unit".into(), json!(self.unit));
        line
    }

    fn misses_goal(&self, line: &Value) -> bool {
        let (Some(goal), Some(ratio)) = (self.goal, line["ratio"].as_f64()) else { return false };
        match self.better {
            Better::Lower => ratio > goal,
            Better::Higher => ratio < goal,
        }
    }
}

impl Better {
    fn word(self) -> &'static str {
        match self {
            Better::Lower => "lower",
            Better::Higher => "higher",
        }
    }
}

/// The middle value, or the mean of the two middle ones; `None` when there is none.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// MiB/s.
pub(crate) fn mib_per_second(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / f64::from(1 << 20) / time.as_secs_f64()
}

/// Four significant digits: more would only be noise.
fn round(value: f64) -> Value {
    let text = format!("{value:.3e}");
    text.parse::<f64>().map_or(Value::Null, |rounded| json!(rounded))
}

/// `serde_json` sorts an object's keys; the order of the keys is part of the format, for the people who read it.
fn print_line(line: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", ordered(line)).context("cannot print a figure")?;
    out.flush().context("cannot print a figure")
}

fn ordered(line: &Value) -> String {
    let mut text = String::from("{");
    for (key, value) in KEYS.iter().filter_map(|key| line.get(key).map(|value| (key, value))) {
        let comma = if text.len() > 1 { "," } else { "" };
        write!(text, "{comma}\"{key}\":{value}").expect("a String takes every write");
    }
    text + "}"
}

const KEYS: [&str; 14] = [
    "figure",
    "value",
    "unit",
    "peer",
    "peer_value",
    "ratio",
    "better",
    "goal",
    "runs",
    "min",
    "max",
    "ratio_min",
    "ratio_max",
    "skipped",
];

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: Figure = Figure {
        name: Cow::Borrowed("boot_ready"),
        unit: "s",
        peer: "bare init",
        better: Better::Lower,
        goal: Some(1.15),
    };

    #[test]
    fn a_figure_is_one_line_with_every_field_in_order() {
        let samples = Samples { ours: vec![0.9, 0.95, 0.88], peer: vec![0.8, 0.7, 0.9] };
        assert_eq!(
            ordered(&BOOT.line(&samples).unwrap()),
            "{\"figure\":\"boot_ready\",\"value\":0.9,\"unit\":\"s\",\"peer\":\"bare init\",\"peer_value\":0.8,\
             \"ratio\":1.125,\"better\":\"lower\",\"goal\":1.15,\"runs\":3,\"min\":0.88,\"max\":0.95,\"ratio_min\":0.9778,\"ratio_max\":1.357}"
        );
    }

    #[test]
    fn a_skipped_peer_says_why_and_keeps_our_value() {
        let mut line = BOOT.head(&[0.5]);
        line.insert("skipped".into(), json!("no \"tor\""));
        assert_eq!(
            ordered(&Value::Object(line)),
            r#"{"figure":"boot_ready","value":0.5,"unit":"s","skipped":"no \"tor\""}"#
        );
    }

    #[test]
    fn no_key_is_forgotten_in_the_order() {
        let line = BOOT.line(&Samples::against_budget(1.0, 2.0)).unwrap();
        for key in line.as_object().unwrap().keys() {
            assert!(KEYS.contains(&key.as_str()), "{key}");
        }
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), Some(3.0));
    }

    #[test]
    fn a_goal_is_missed_on_the_bad_side_only() {
        let misses = |ours: f64, better| {
            let figure = Figure { better, goal: Some(1.0), ..BOOT };
            figure.misses_goal(&figure.line(&Samples::against_budget(ours, 10.0)).unwrap())
        };
        assert!(misses(10.1, Better::Lower) && !misses(9.9, Better::Lower));
        assert!(misses(9.9, Better::Higher) && !misses(10.1, Better::Higher));
    }

    #[test]
    fn values_are_rounded_to_four_digits() {
        assert_eq!(round(0.123_456), json!(0.1235));
        assert_eq!(round(16_777_216.0), json!(16_780_000.0));
        assert_eq!(round(f64::NAN), Value::Null);
    }

    #[test]
    fn pairs_take_turns() {
        let mut order = vec![];
        let mut samples = Samples::default();
        for _ in 0..2 {
            let run = |who| {
                move |order: &mut Vec<_>| {
                    order.push(who);
                    Ok(1.0)
                }
            };
            samples.pair(&mut order, run("ours"), run("peer")).unwrap();
        }
        assert_eq!(order, ["ours", "peer", "peer", "ours"]);
    }
}
