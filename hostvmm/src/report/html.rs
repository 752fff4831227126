//! A ledger as one self-contained HTML page: the text report, and plots of pages and times over the passes.

use maud::{DOCTYPE, PreEscaped, html as markup};
use plotters::prelude::*;

use super::{Ledger, PassEntry, cell_name, text};

/// Size of a plot in pixels.
const PLOT_SIZE: (u32, u32) = (900, 260);

/// One line of a plot: its label, its colour, and its value in a pass.
type Series = (&'static str, RGBColor, fn(&PassEntry) -> u64);

/// The ledger as HTML.
pub fn html(ledger: &Ledger) -> String {
    let title = format!("Tidemark {}: {}", ledger.scenario, ledger.verdict.name());
    let runs = if ledger.cells.is_empty() { std::slice::from_ref(ledger) } else { &ledger.cells };
    markup! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                title { (title) }
                style { "body{font-family:sans-serif;margin:2em;max-width:70em} pre{overflow-x:auto}" }
            }
            body {
                h1 { (title) }
                pre { (text(ledger)) }
                @for run in runs {
                    @if run.passes.len() > 2 {
                        h2 { (cell_name(run)) }
                        (PreEscaped(plot("pages", run, &[
                            ("predicted", BLUE, |pass| pass.predicted),
                            ("harvested", GREEN, |pass| pass.harvested),
                            ("missing", RED, |pass| pass.missing),
                        ])))
                        (PreEscaped(plot("µs", run, &[
                            ("harvest", BLUE, |pass| pass.harvest_ns / 1000),
                            ("copy", GREEN, |pass| pass.copy_ns / 1000),
                            ("digest", MAGENTA, |pass| pass.digest_ns / 1000),
                        ])))
                    }
                }
            }
        }
    }
    .into_string()
}

/// An SVG plot of `series` over the run's passes. Pass 0, which copies everything, would flatten the rest: left out.
fn plot(unit: &str, run: &Ledger, series: &[Series]) -> String {
    let passes = &run.passes[1..];
    let top = series.iter().flat_map(|(_, _, value)| passes.iter().map(value)).max().unwrap_or(0).max(1);
    let last = passes.last().map_or(1, |pass| pass.pass);
    let mut svg = String::new();
    let drawn = (|| {
        let area = SVGBackend::with_string(&mut svg, PLOT_SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin(8)
            .x_label_area_size(28)
            .y_label_area_size(70)
            .build_cartesian_2d(1..last.max(2), 0..top.saturating_add(top / 10 + 1))?;
        chart.configure_mesh().x_desc("pass").y_desc(unit).draw()?;
        for (label, colour, value) in series {
            let colour = *colour;
            chart
                .draw_series(LineSeries::new(passes.iter().map(|pass| (pass.pass, value(pass))), colour))?
                .label(*label)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour));
        }
        chart.configure_series_labels().border_style(BLACK).background_style(WHITE).draw()?;
        area.present()
    })();
    drawn.expect("drawing into a String fails only for a bad layout, and this one is constant");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::sample;

    #[test]
    fn the_page_has_the_report_and_its_plots() {
        let page = html(&sample());
        assert!(page.contains("MISMATCH missing"), "the text report is in the page");
        assert!(!page.contains("<svg"), "one pass makes no line");
        let mut longer = sample();
        longer.passes.push(PassEntry { pass: 2, predicted: 10, ..PassEntry::default() });
        assert_eq!(html(&longer).matches("<svg").count(), 2);
    }
}
