//! A ledger as one self-contained HTML page: the text report, plots of pages and times over the passes, and of a migration
//! its passes and the gaps between the guest's heartbeats.

use maud::{DOCTYPE, PreEscaped, html as markup};
use plotters::prelude::*;

use super::ledger::{GapsEntry, RoundEntry};
use super::{Ledger, PassEntry, cell_name, migration, text};

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
                    @if let Some(entry) = &run.migration {
                        h2 { (cell_name(run)) }
                        @if entry.rounds.len() > 1 {
                            (PreEscaped(rounds(&entry.rounds)))
                        }
                        @if let Some(gaps) = &entry.gaps {
                            (PreEscaped(histogram(gaps)))
                        }
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

/// An SVG plot of what each pass of a migration sent, on a logarithmic scale: pass 0 sends everything.
fn rounds(rounds: &[RoundEntry]) -> String {
    let kib = |round: &RoundEntry| (round.bytes / 1024).max(1);
    let top = rounds.iter().map(kib).max().unwrap_or(1);
    let last = rounds.last().map_or(1, |round| round.pass);
    let mut svg = String::new();
    let drawn = (|| {
        let area = SVGBackend::with_string(&mut svg, PLOT_SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin(8)
            .x_label_area_size(28)
            .y_label_area_size(70)
            .build_cartesian_2d(0..last.max(1), (1..top.saturating_mul(2)).log_scale())?;
        chart.configure_mesh().x_desc("pass of the migration").y_desc("KiB sent").draw()?;
        chart.draw_series(LineSeries::new(rounds.iter().map(|round| (round.pass, kib(round))), BLUE).point_size(3))?;
        area.present()
    })();
    drawn.expect("drawing into a String fails only for a bad layout, and this one is constant");
    svg
}

/// An SVG plot of how many gaps between heartbeats were how long, both on logarithmic scales.
fn histogram(gaps: &GapsEntry) -> String {
    let buckets = migration::buckets(gaps);
    let top = buckets.iter().flat_map(|(_, counts)| counts).copied().max().unwrap_or(1).max(1);
    let [first, last] =
        [buckets.first(), buckets.last()].map(|bucket| bucket.map_or(1, |(from_ns, _)| (*from_ns).max(1)));
    let mut svg = String::new();
    let drawn = (|| {
        let area = SVGBackend::with_string(&mut svg, PLOT_SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin(8)
            .x_label_area_size(28)
            .y_label_area_size(70)
            .build_cartesian_2d((first..last.saturating_mul(2)).log_scale(), (1..top.saturating_mul(2)).log_scale())?;
        chart.configure_mesh().x_desc("ns between two heartbeats").y_desc("gaps").draw()?;
        for (part, (label, colour)) in [("before", BLUE), ("during", RED), ("after", GREEN)].into_iter().enumerate() {
            // Each part's dots a little beside the others', so that none hides another.
            let dot = |(from_ns, counts): &(u64, [u64; 3])| {
                let beside = (*from_ns).max(1).saturating_add(from_ns / 4 * part as u64);
                (counts[part] > 0).then(|| Circle::new((beside, counts[part]), 4, colour.filled()))
            };
            chart
                .draw_series(buckets.iter().filter_map(dot))?
                .label(label)
                .legend(move |at| Circle::new(at, 4, colour.filled()));
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

    #[test]
    fn a_migration_has_plots_of_its_passes_and_of_the_gaps() {
        let page = html(&crate::report::migration::tests::migrated());
        assert_eq!(page.matches("<svg").count(), 2);
        assert!(page.contains("during"), "the legend names the parts");
    }
}
