//! What a command prints: log within its limit, lines for patterns, progress,
//! and the last lines of its standard error, all in bounded memory.

use std::collections::VecDeque;

use anstream::adapter::strip_str;
use serde::Deserialize;

use super::Finished;

/// A line longer than this is cut: patterns see its beginning only.
pub const LONGEST_LINE: usize = 64 * 1024;
/// Lines of standard error that an error message shows.
const TAIL_LINES: usize = 15;
/// Bytes kept of each of them: more than is shown, so that a secret is masked before the line is cut.
const TAIL_WIDTH: usize = 8 * 1024;

/// Hears what a command prints.
pub trait Listener: Send {
    /// Bytes for the log, as they come.
    fn log(&mut self, bytes: &[u8]);
    /// A line of standard output, cut at `LONGEST_LINE`, without its end and its colours.
    fn line(&mut self, line: &str);
    /// A progress line.
    fn progress(&mut self, percent: Option<f64>, message: &str);
}

/// A line `{"refit":"progress","pct":40,"message":"…"}`.
#[derive(Deserialize)]
struct Progress {
    refit: String,
    pct: Option<f64>,
    #[serde(default)]
    message: String,
}

/// What is read of a command that runs.
pub(super) struct Following<'l> {
    listener: &'l mut dyn Listener,
    left: u64,
    pub(super) finished: Finished,
    line: Line,
    /// The line of standard error that is being read.
    error_line: Vec<u8>,
    tail: Tail,
}

/// The line of standard output that is being read.
#[derive(Default)]
struct Line {
    text: Vec<u8>,
    /// Bytes of it that the log has.
    logged: usize,
}

impl Line {
    /// A line that is too long to be kept from the log until it is whole.
    fn is_cut(&self) -> bool {
        self.text.len() >= LONGEST_LINE
    }

    fn may_be_progress(&self) -> bool {
        self.text.first() == Some(&b'{') && !self.is_cut()
    }
}

impl<'l> Following<'l> {
    /// Passes at most `limit` bytes on as log.
    pub(super) fn new(listener: &'l mut dyn Listener, limit: u64) -> Self {
        let (finished, line, tail) = (Finished::default(), Line::default(), Tail::default());
        Self { listener, left: limit, finished, line, error_line: vec![], tail }
    }

    pub(super) fn stdout(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (part, ended) = match bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
                Some(end) => (&bytes[..=end], true),
                None => (bytes, false),
            };
            bytes = &bytes[part.len()..];
            let room = LONGEST_LINE.saturating_sub(self.line.text.len());
            let (kept, beyond) = part.split_at(part.len().min(room));
            self.line.text.extend_from_slice(kept);
            if ended {
                self.end_line();
            } else if self.line.is_cut() {
                self.log_line();
            }
            self.log(beyond);
        }
    }

    fn end_line(&mut self) {
        let text = String::from_utf8_lossy(&self.line.text);
        let line = text.trim_end_matches(['\r', '\n']);
        let progress = self
            .line
            .may_be_progress()
            .then(|| serde_json::from_str::<Progress>(line).ok())
            .flatten()
            .filter(|progress| progress.refit == "progress");
        match progress {
            Some(Progress { pct, message, .. }) => {
                self.listener.progress(pct.map(|pct| pct.clamp(0.0, 100.0)), &message);
                self.line.logged = self.line.text.len();
            }
            None if line.is_empty() => {}
            // Colours are for people: no pattern of a metric has them.
            None => self.listener.line(&strip_str(line).to_string()),
        }
        self.log_line();
        self.line.text.clear();
        self.line.logged = 0;
    }

    fn log_line(&mut self) {
        let text = std::mem::take(&mut self.line.text);
        self.log(&text[self.line.logged..]);
        self.line.logged = text.len();
        self.line.text = text;
    }

    /// Lines go to the log whole: one of standard output never splits one of standard error, nor a secret in it.
    pub(super) fn stderr(&mut self, bytes: &[u8]) {
        self.tail.push(bytes);
        self.error_line.extend_from_slice(bytes);
        let end = bytes.iter().rposition(|byte| matches!(byte, b'\n' | b'\r'));
        let open = end.map_or(self.error_line.len(), |end| bytes.len() - end - 1);
        let whole = if open >= LONGEST_LINE { self.error_line.len() } else { self.error_line.len() - open };
        let rest = self.error_line.split_off(whole);
        let lines = std::mem::replace(&mut self.error_line, rest);
        self.log(&lines);
    }

    fn log(&mut self, bytes: &[u8]) {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        if room > 0 {
            self.listener.log(&bytes[..room]);
        }
        self.left -= room as u64;
        self.finished.dropped += (bytes.len() - room) as u64;
    }

    pub(super) fn finish(mut self) -> Finished {
        if !self.line.text.is_empty() {
            self.end_line();
        }
        let rest = std::mem::take(&mut self.error_line);
        self.log(&rest);
        Finished { stderr: self.tail.lines(), disk_full: self.tail.saw_disk_full(), ..self.finished }
    }
}

/// The last lines of standard error.
#[derive(Default)]
struct Tail {
    lines: VecDeque<Vec<u8>>,
    open: bool,
    disk_full: bool,
}

/// How every language says ENOSPC, for it is the C library's text.
const DISK_FULL: &[u8] = b"No space left on device";

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            if !self.open {
                if self.lines.len() == TAIL_LINES {
                    self.lines.pop_front();
                }
                self.lines.push_back(Vec::new());
            }
            self.open = piece.last() != Some(&b'\n');
            if let Some(line) = self.lines.back_mut() {
                let room = TAIL_WIDTH.saturating_sub(line.len());
                line.extend_from_slice(&piece[..piece.len().min(room)]);
            }
            if !self.open {
                self.disk_full |= self.last_is_disk_full();
            }
        }
    }

    fn last_is_disk_full(&self) -> bool {
        self.lines.back().is_some_and(|line| line.windows(DISK_FULL.len()).any(|part| part == DISK_FULL))
    }

    fn saw_disk_full(&self) -> bool {
        self.disk_full || self.last_is_disk_full()
    }

    fn lines(&self) -> Vec<String> {
        let texts = self.lines.iter().map(|line| {
            let text = String::from_utf8_lossy(line);
            strip_str(&text).to_string().trim_end().to_owned()
        });
        texts.filter(|line| !line.is_empty()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Heard {
        log: Vec<u8>,
        lines: Vec<String>,
        progress: Vec<(Option<f64>, String)>,
    }

    impl Listener for Heard {
        fn log(&mut self, bytes: &[u8]) {
            self.log.extend_from_slice(bytes);
        }

        fn line(&mut self, line: &str) {
            self.lines.push(line.to_owned());
        }

        fn progress(&mut self, percent: Option<f64>, message: &str) {
            self.progress.push((percent, message.to_owned()));
        }
    }

    fn hear(chunks: &[&[u8]], limit: u64) -> (Heard, Finished) {
        let mut heard = Heard::default();
        let mut following = Following::new(&mut heard, limit);
        for chunk in chunks {
            following.stdout(chunk);
        }
        let finished = following.finish();
        (heard, finished)
    }

    #[test]
    fn lines_are_put_together_whatever_the_chunks() {
        let (heard, _) = hear(&[b"MAE: 1", b"2\nR\xc2", b"\xb2: 0.9"], 1000);
        assert_eq!(heard.lines, ["MAE: 12", "R²: 0.9"]);
        assert_eq!(heard.log, "MAE: 12\nR²: 0.9".as_bytes());
    }

    #[test]
    fn progress_is_not_log_and_other_json_is() {
        let text = br#"{"refit":"progress","pct":140,"message":"fit"}
{"refit":"other"}
{"loss":1}
"#;
        for size in [1, 7, text.len()] {
            let chunks: Vec<_> = text.chunks(size).collect();
            let (heard, _) = hear(&chunks, 1000);
            assert_eq!(heard.progress, [(Some(100.0), "fit".to_owned())]);
            assert_eq!(String::from_utf8_lossy(&heard.log), "{\"refit\":\"other\"}\n{\"loss\":1}\n");
        }
    }

    #[test]
    fn lines_of_both_streams_are_whole_in_the_log() {
        let mut heard = Heard::default();
        let mut following = Following::new(&mut heard, 1000);
        following.stdout(b"the first ");
        following.stderr(b"a warn");
        following.stdout(b"line\nno ");
        following.stderr(b"ing\nlast");
        following.stdout(b"end");
        following.finish();
        assert_eq!(String::from_utf8_lossy(&heard.log), "the first line\na warning\nno endlast");
    }

    #[test]
    fn a_line_without_end_is_cut_for_patterns_and_whole_in_the_log() {
        let chunk = vec![b'{'; 50_000];
        let (heard, _) = hear(&[&chunk, &chunk, &chunk, b"\nnext\n"], 1_000_000);
        assert_eq!(heard.lines.iter().map(String::len).collect::<Vec<_>>(), [LONGEST_LINE, 4]);
        assert_eq!(heard.log.len(), 150_000 + 6);
    }

    #[test]
    fn log_beyond_the_limit_is_counted() {
        let (heard, finished) = hear(&[b"0123456789\n", b"0123456789\n"], 15);
        assert_eq!(heard.log.len(), 15);
        assert_eq!(finished.dropped, 7);
        assert_eq!(heard.lines.len(), 2, "patterns still see every line");
    }

    #[test]
    fn the_tail_keeps_the_last_lines_only() {
        let mut tail = Tail::default();
        for number in 0..100 {
            tail.push(format!("line {number}\n").as_bytes());
        }
        tail.push(b"no end");
        assert_eq!(tail.lines().len(), TAIL_LINES);
        assert_eq!(tail.lines().last().map(String::as_str), Some("no end"));
    }

    #[test]
    fn colours_are_in_the_log_and_nowhere_else() {
        let (heard, _) = hear(&[b"\x1b[1mMAE:\x1b[0m \x1b[32m12.5\x1b[0m\n"], 1000);
        assert_eq!(heard.lines, ["MAE: 12.5"]);
        assert_eq!(heard.log, b"\x1b[1mMAE:\x1b[0m \x1b[32m12.5\x1b[0m\n");
        let mut tail = Tail::default();
        tail.push("\x1b[31mValueError\x1b[0m: Größe 3\n".as_bytes());
        assert_eq!(tail.lines(), ["ValueError: Größe 3"]);
    }
}
