//! Several metrics, one bound: a weighted average of e-values is an e-value,
//! however the metrics depend on each other.

use serde::Serialize;

use super::{InvalidInput, checked, log_mixture};

/// Rounding that a sum of written weights may show; no weight is that small.
const ROUNDING: f64 = 1e-9;

/// The evidence of one metric.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Weighted {
    /// Its share of alpha.
    pub weight: f64,
    /// Its `ln E_worse`.
    pub log_e: f64,
}

/// The evidence of several metrics together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Combined {
    /// `ln sum_j u_j E_j`: at `ln(1/alpha)` or more, roll back.
    pub log_e: f64,
    /// Which metric contributes most: an index into what was given.
    pub leading: usize,
}

/// The weighted average of the metrics' e-values. Weight that no metric has
/// stands for evidence of nothing, an e-value of 1.
///
/// Promotion needs no such correction: every gating metric must be non-inferior
/// at `beta` by itself.
///
/// # Errors
/// No metric; a weight that is not positive; weights that sum to more than 1;
/// evidence that is not a number.
pub fn combine(metrics: &[Weighted]) -> Result<Combined, InvalidInput> {
    let mut sum = 0.0;
    for metric in metrics {
        sum += checked("weight", metric.weight, |w| w > ROUNDING, "above 0")?;
        checked("evidence", metric.log_e, f64::is_finite, "a finite logarithm")?;
    }
    if sum > 1.0 + ROUNDING {
        return Err(InvalidInput::WeightsExceedOne { sum });
    }
    let share = |metric: &Weighted| metric.weight.ln() + metric.log_e;
    let leading = (0..metrics.len())
        .reduce(|best, i| if share(&metrics[i]) > share(&metrics[best]) { i } else { best })
        .ok_or(InvalidInput::Empty { name: "metric" })?;
    let spare = Some((1.0 - sum, 0.0)).filter(|(weight, _)| *weight > ROUNDING);
    let terms = metrics.iter().map(|metric| (metric.weight, metric.log_e)).chain(spare);
    Ok(Combined { log_e: log_mixture(terms), leading })
}

#[cfg(test)]
mod tests {
    use super::super::vectors::{assert_close, number, numbers, rows};
    use super::*;

    fn weighted(weight: f64, log_e: f64) -> Weighted {
        Weighted { weight, log_e }
    }

    #[test]
    fn the_combination_matches_the_reference() {
        for row in rows("K_combine") {
            let evidence = numbers(&row, "log_E");
            let metrics: Vec<_> =
                numbers(&row, "weights").into_iter().zip(evidence).map(|(w, e)| weighted(w, e)).collect();
            let combined = combine(&metrics).expect("valid");
            assert_close(combined.log_e, number(&row, "log_E_global"), &row);
            assert_eq!(combined.leading, 0);
        }
    }

    #[test]
    fn the_leading_metric_is_the_one_with_the_largest_share() {
        let combined = combine(&[weighted(0.1, 3.0), weighted(0.8, 2.0)]).expect("valid");
        assert_eq!(combined.leading, 1);
    }

    #[test]
    fn weight_that_no_metric_has_is_evidence_of_nothing() {
        let half = combine(&[weighted(0.5, -1000.0)]).expect("valid");
        assert!((half.log_e - 0.5f64.ln()).abs() < 1e-12);
        let with_idle = combine(&[weighted(0.5, 3.0), weighted(0.5, 0.0)]).expect("valid");
        let alone = combine(&[weighted(0.5, 3.0)]).expect("valid");
        assert!((alone.log_e - with_idle.log_e).abs() < 1e-12);
        assert_eq!(combine(&[weighted(0.3, 0.0), weighted(0.2, 0.0)]).expect("valid").log_e, 0.0);
    }

    #[test]
    fn weights_that_break_the_bound_are_refused() {
        assert_eq!(combine(&[]), Err(InvalidInput::Empty { name: "metric" }));
        assert!(combine(&[weighted(0.6, 0.0), weighted(0.5, 0.0)]).is_err());
        assert!(combine(&[weighted(0.0, 0.0)]).is_err());
        assert!(combine(&[weighted(0.5, f64::NAN)]).is_err());
        assert!(combine(&[weighted(0.1, 0.0); 10]).is_ok());
    }
}
