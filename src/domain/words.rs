//! Counts and numbers as people read them, and foreign text that does no harm where it is shown.

/// At most so much of a foreign text is shown.
const LONGEST_EXCERPT: usize = 300;

/// A count with a comma between thousands: `1,234,567`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let comma = |place: usize| place > 0 && (digits.len() - place).is_multiple_of(3);
    let places = digits.chars().enumerate();
    places.flat_map(|(place, digit)| comma(place).then_some(',').into_iter().chain([digit])).collect()
}

/// `1 row`, `1,234 rows`.
pub fn counted(n: u64, what: &str) -> String {
    format!("{} {what}{}", count(n), if n == 1 { "" } else { "s" })
}

/// A size in the largest unit that leaves at least 1.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A number in five significant digits, without trailing zeros; very small and very large ones as
/// `1.2346e-7`.
pub fn number(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    let magnitude = value.abs().log10().floor();
    if !(-4.0..9.0).contains(&magnitude) {
        return format!("{value:.4e}");
    }
    let decimals = (4.0 - magnitude).clamp(0.0, 9.0) as usize;
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// Whether a character steers what shows it: moves a terminal's cursor, ends a line, turns text around.
pub fn steers(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Foreign text with `�` in place of every character that steers; as many characters as before.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if steers(c) { '\u{fffd}' } else { c }).collect()
}

/// Foreign text made fit for one line of a message: nothing that [`steers`], and not long.
pub fn excerpt(text: &str) -> String {
    let line = text.split(|c: char| c.is_whitespace() || steers(c)).filter(|word| !word.is_empty());
    let line = line.collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(LONGEST_EXCERPT) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_commas() {
        let counts = [0, 999, 1000, 1_234_567];
        assert_eq!(counts.map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([1, 1234].map(|n| counted(n, "row")), ["1 row", "1,234 rows"]);
        assert_eq!([999, 144 << 20].map(bytes), ["999 B", "144.0 MiB"]);
    }

    #[test]
    fn numbers_have_five_digits() {
        let numbers = [0.912_345_678, 451.2, -30.0, 1_234_567.0, 1.234_56e-7, 5e11, 0.0, f64::NAN];
        assert_eq!(
            numbers.map(number),
            ["0.91235", "451.2", "-30", "1234567", "1.2346e-7", "5.0000e11", "0", "NaN"]
        );
    }

    #[test]
    fn what_steers_is_not_shown() {
        assert_eq!(printable("a\u{1b}[2Jb\n\u{202e}c é"), "a�[2Jb��c é");
    }
}
