//! How a sentence stands in HTML: escaped, commands as code, and neither a command, a date nor a percentage broken in
//! two lines.

use handlebars::{
    Context, Handlebars, Helper, HelperDef, HelperResult, Output, RenderContext, RenderError, html_escape,
};

/// A version may be longer than a line of a telephone.
const LONGEST_WHOLE: usize = 24;

/// `{{prose text}}` in HTML: the text, escaped, with what stands in backticks as code.
pub struct Prose {
    /// The tag that begins code.
    pub code: &'static str,
}

impl HelperDef for Prose {
    fn call<'reg: 'rc, 'rc>(
        &self,
        helper: &Helper<'rc>,
        _: &'reg Handlebars<'reg>,
        _: &'rc Context,
        _: &mut RenderContext<'reg, 'rc>,
        out: &mut dyn Output,
    ) -> HelperResult {
        let text = helper.param(0).and_then(|text| text.value().as_str()).unwrap_or_default();
        let mut parts: Vec<&str> = text.split('`').collect();
        if parts.len().is_multiple_of(2) {
            // A backtick without its other is one.
            parts = vec![text];
        }
        for (index, part) in parts.iter().enumerate() {
            if index.is_multiple_of(2) {
                words(part, out)?;
            } else {
                out.write(self.code)?;
                out.write(&html_escape(part))?;
                out.write("</code>")?;
            }
        }
        Ok(())
    }
}

/// Text without code: browsers break lines at the hyphens of `2026-11-22`, too.
fn words(text: &str, out: &mut dyn Output) -> Result<(), RenderError> {
    let mut words = text.split_inclusive(char::is_whitespace).peekable();
    while let Some(word) = words.next() {
        let whole = word.trim_end();
        if whole.ends_with(|c: char| c.is_ascii_digit())
            && words.peek().is_some_and(|next| next.starts_with('%'))
        {
            out.write(&html_escape(whole))?;
            out.write("&nbsp;")?;
        } else if begins_with_a_date(whole) && whole.len() <= LONGEST_WHOLE {
            out.write("<span style=\"white-space:nowrap\">")?;
            out.write(&html_escape(whole))?;
            out.write("</span>")?;
            out.write(&html_escape(&word[whole.len()..]))?;
        } else {
            out.write(&html_escape(word))?;
        }
    }
    Ok(())
}

fn begins_with_a_date(word: &str) -> bool {
    let like = |(form, byte): (u8, u8)| if form == b'-' { byte == b'-' } else { byte.is_ascii_digit() };
    word.len() >= 10 && b"dddd-dd-dd".iter().copied().zip(word.bytes()).all(like)
}
