//! `cargo ci picture`: draws the figures that a benchmark printed, as an SVG for the documentation.
//!
//! A bar for each figure that has a peer: how many times as good as the peer ours is, whichever direction is the good
//! one, with the values beside it; a thin line spans the ratios of the single runs, and a mark shows the goal. Figures
//! without a peer have a bar relative to the largest of the same unit.

use std::{fmt::Write as _, fs, io::Read as _, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// Options of `cargo ci picture`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The file that is written.
    #[arg(long)]
    out: PathBuf,
    /// What stands above the bars.
    #[arg(long)]
    title: String,
}

/// Pixels.
const WIDTH: f64 = 960.0;
const ROW: f64 = 26.0;
const TOP: f64 = 64.0;
const LEFT: f64 = 280.0;
const BAR_MAX: f64 = 400.0;

/// Draws what comes on stdin, one JSON object a line.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("cannot read the figures from stdin")?;
    let figures: Vec<Value> =
        text.lines().map(serde_json::from_str).collect::<Result<_, _>>().context("stdin is no list of figures")?;
    fs::write(&args.out, draw(&args.title, &figures)?).with_context(|| format!("cannot write {}", args.out.display()))
}

/// One bar.
struct Bar<'a> {
    name: &'a str,
    /// In times of the peer, more is better; or in parts of the largest.
    length: f64,
    /// The least and the most of the runs.
    spread: Option<(f64, f64)>,
    goal: Option<f64>,
    text: String,
    compared: bool,
}

fn draw(title: &str, figures: &[Value]) -> Result<String> {
    let bars: Vec<Bar<'_>> = figures.iter().filter_map(|figure| bar(figure, figures)).collect();
    ensure!(!bars.is_empty(), "there is no figure with a value");
    let most = bars.iter().map(|bar| bar.spread.map_or(bar.length, |(_, most)| most.max(bar.length)));
    let scale = BAR_MAX / most.fold(1.0, f64::max);
    let height = TOP + ROW * bars.len() as f64 + 16.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"16\" y=\"26\" font-size=\"17\" font-weight=\"bold\">{}</text>\n\
         <text x=\"16\" y=\"48\" fill=\"#666\">bars: times as good as the peer (dashed: as good); thin: spread of the \
         runs; red: goal; grey bars: no peer</text>\n",
        escaped(title)
    );
    let parity = LEFT + scale;
    let _ = writeln!(
        svg,
        "<line x1=\"{parity:.1}\" x2=\"{parity:.1}\" y1=\"{TOP}\" y2=\"{:.1}\" stroke=\"#888\" stroke-dasharray=\"4\"/>",
        height - 16.0
    );
    for (row, bar) in bars.iter().enumerate() {
        write_bar(&mut svg, bar, TOP + ROW * row as f64, scale);
    }
    Ok(svg + "</svg>\n")
}

fn bar<'a>(figure: &'a Value, all: &[Value]) -> Option<Bar<'a>> {
    let (name, value, unit) = (figure["figure"].as_str()?, figure["value"].as_f64()?, figure["unit"].as_str()?);
    let Some(ratio) = figure["ratio"].as_f64().filter(|ratio| *ratio > 0.0) else {
        let same = all.iter().filter(|other| other["unit"] == unit).filter_map(|other| other["value"].as_f64());
        let length = value / same.fold(f64::MIN_POSITIVE, f64::max);
        return Some(Bar { name, length, spread: None, goal: None, text: format!("{value} {unit}"), compared: false });
    };
    let lower = figure["better"] == "lower";
    let good = |ratio: f64| if lower { 1.0 / ratio } else { ratio };
    let spread = figure["ratio_min"].as_f64().zip(figure["ratio_max"].as_f64()).map(|(a, b)| (good(a), good(b)));
    Some(Bar {
        name,
        length: good(ratio),
        spread: spread.map(|(a, b)| (a.min(b), a.max(b))),
        goal: figure["goal"].as_f64().map(good),
        text: format!("{value} against {} {unit}", figure["peer_value"]),
        compared: true,
    })
}

fn write_bar(svg: &mut String, bar: &Bar<'_>, top: f64, scale: f64) {
    let (base, middle) = (top + 18.0, top + 13.0);
    let fill = match bar.goal {
        _ if !bar.compared => "#b8b8b8",
        Some(goal) if bar.length < goal => "#e0a458",
        _ => "#5b8c5a",
    };
    let width = bar.length * scale;
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{base:.1}\" text-anchor=\"end\">{}</text>\
         <rect x=\"{LEFT}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"18\" fill=\"{fill}\"/>",
        LEFT - 8.0,
        escaped(bar.name),
        top + 4.0
    );
    let mut end = width;
    if let Some((least, most)) = bar.spread {
        end = end.max(most * scale);
        let _ = writeln!(
            svg,
            "<line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\" stroke=\"#333\"/>",
            LEFT + least * scale,
            LEFT + most * scale
        );
    }
    if let Some(goal) = bar.goal {
        let x = LEFT + goal * scale;
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top:.1}\" y2=\"{:.1}\" stroke=\"#c33\" stroke-width=\"2\"/>",
            top + ROW
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{base:.1}\" fill=\"#444\">{}</text>",
        LEFT + end + 8.0,
        escaped(&bar.text)
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn less_is_better_where_it_is() {
        let figure = json!({ "figure": "cost", "value": 5.0, "unit": "µs", "peer_value": 10.0, "ratio": 0.5,
            "better": "lower", "goal": 0.5, "ratio_min": 0.4, "ratio_max": 0.8 });
        let bar = bar(&figure, &[]).unwrap();
        assert_eq!((bar.length, bar.goal, bar.spread), (2.0, Some(2.0), Some((1.25, 2.5))));
        assert_eq!(bar.text, "5 against 10.0 µs");
    }

    #[test]
    fn figures_without_a_peer_are_compared_with_each_other() {
        let figures = [
            json!({ "figure": "a", "value": 1.0, "unit": "s", "skipped": "no peer" }),
            json!({ "figure": "b", "value": 4.0, "unit": "s", "skipped": "no peer" }),
        ];
        assert_eq!(bar(&figures[0], &figures).map(|bar| (bar.length, bar.compared)), Some((0.25, false)));
    }

    #[test]
    fn a_picture_has_a_row_for_each_figure_that_has_a_value() {
        let figures = [json!({ "figure": "a<b", "value": 1.0, "unit": "s" }), json!({ "figure": "none", "unit": "s" })];
        let svg = draw("A & B", &figures).unwrap();
        assert!(svg.contains("A &amp; B") && svg.contains("a&lt;b") && !svg.contains("none<"));
        assert_eq!(svg.matches("<rect").count(), 2);
        assert!(draw("nothing", &figures[1..]).is_err());
    }
}
