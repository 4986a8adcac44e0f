//! Other ways to decide on the same minutes.

use refit::domain::stats::Table;

use crate::traffic::DAY;

/// Rolls back at the fifth minute of the canary with less than 99 % success; the count is never reset,
/// and no traffic is a failed check (Flagger, `threshold: 5`, `interval: 1m`).
#[derive(Debug, Clone, Copy, Default)]
pub struct Flagger(u32);

impl Flagger {
    pub fn rolls_back(&mut self, minute: &Table) -> bool {
        let (n, e) = (minute.canary.n(), minute.canary.e());
        self.0 += u32::from(n == 0 || (e as f64) > 0.01 * n as f64);
        self.0 >= 5
    }
}

/// One look after a day: rolls back at 5 % errors or more.
#[derive(Debug, Clone, Copy, Default)]
pub struct Naive {
    n: u64,
    e: u64,
}

impl Naive {
    pub fn rolls_back(&mut self, minute: u32, table: &Table) -> bool {
        self.n += table.canary.n();
        self.e += table.canary.e();
        minute + 1 == DAY && self.e as f64 >= 0.05 * self.n as f64
    }
}

/// A one-sided pooled z-test at 5 %, looked at every minute.
#[derive(Debug, Clone, Copy, Default)]
pub struct Peeking {
    canary: (f64, f64),
    stable: (f64, f64),
}

impl Peeking {
    pub fn rolls_back(&mut self, table: &Table) -> bool {
        for (sum, arm) in [(&mut self.canary, table.canary), (&mut self.stable, table.stable)] {
            sum.0 += arm.n() as f64;
            sum.1 += arm.e() as f64;
        }
        let ((n_c, e_c), (n_s, e_s)) = (self.canary, self.stable);
        let pooled = (e_c + e_s) / (n_c + n_s);
        let error = (pooled * (1.0 - pooled) * (1.0 / n_c + 1.0 / n_s)).sqrt();
        n_c > 0.0 && n_s > 0.0 && error > 0.0 && (e_c / n_c - e_s / n_s) / error >= 1.644_853_626_951_472_6
    }
}

/// Knows both rates, and tests them against one rate for both arms: the likelihood ratio to the pooled rate,
/// which no e-value against "the arms are equal" beats on average (Turner, Ly, Grunwald, arXiv 2106.02693).
#[derive(Debug, Clone, Copy)]
pub struct Oracle {
    rates: (f64, f64),
    log_e: f64,
}

impl Oracle {
    pub fn new(canary: f64, stable: f64) -> Self {
        Self { rates: (canary, stable), log_e: 0.0 }
    }

    pub fn rolls_back(&mut self, table: &Table, share: f64, alpha: f64) -> bool {
        let (canary, stable) = self.rates;
        let pooled = share * canary + (1.0 - share) * stable;
        for (arm, rate) in [(table.canary, canary), (table.stable, stable)] {
            let (n, e) = (arm.n() as f64, arm.e() as f64);
            self.log_e += e * (rate / pooled).ln() + (n - e) * ((1.0 - rate) / (1.0 - pooled)).ln();
        }
        self.log_e >= -alpha.ln()
    }
}
