//! The lowest point of a function of one variable.

/// Every step keeps 0.618 of the bracket: 80 leave less than rounding does.
const STEPS: usize = 80;

/// Where a function with one minimum in `[low, high]` has it, by golden section (Kiefer, 1953).
pub(super) fn golden_section(mut low: f64, mut high: f64, f: impl Fn(f64) -> f64) -> f64 {
    let ratio = (5f64.sqrt() - 1.0) / 2.0;
    let (mut left, mut right) = (high - ratio * (high - low), low + ratio * (high - low));
    let (mut f_left, mut f_right) = (f(left), f(right));
    for _ in 0..STEPS {
        if f_left < f_right {
            (high, right, f_right) = (right, left, f_left);
            left = high - ratio * (high - low);
            f_left = f(left);
        } else {
            (low, left, f_left) = (left, right, f_right);
            right = low + ratio * (high - low);
            f_right = f(right);
        }
    }
    0.5 * (low + high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_minimum_is_found_inside_and_at_the_ends() {
        let lowest = |target: f64| golden_section(-3.0, 5.0, |x| (x - target).abs());
        for (target, expected) in [(1.25, 1.25), (-3.0, -3.0), (9.0, 5.0), (-9.0, -3.0)] {
            assert!((lowest(target) - expected).abs() < 1e-12, "{target}");
        }
    }
}
