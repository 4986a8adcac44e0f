//! What is new of a canary since the last look, from the database.

use super::Engine;
use crate::domain::Timestamp;
use crate::domain::canary::{Analysis, CanaryRecord, ERROR_HISTORY, HISTORY, Labelled, News, Ripe, Ripening};
use crate::domain::release::Release;
use crate::domain::workflow::step::OnlineMetric;
use crate::store::StoreError;

/// Rows of one page, and pages of one look.
const PAGE: (u32, usize) = (2000, 50);
/// Errors of the stable version that its scale is learnt from: the newest.
const STABLE_ERRORS: usize = 200_000;

impl Engine {
    /// What is new since the last look, in pages and at most [`PAGE`] of them.
    pub(super) async fn news(
        &self,
        canary: &CanaryRecord,
        release: &Release,
        now: Timestamp,
    ) -> Result<News, StoreError> {
        // An analysis that cannot be read is answered by `look`; nothing is read for it.
        let Ok(analysis) = Analysis::of(canary) else { return Ok(News::default()) };
        let (limit, pages) = PAGE;
        let share = release.desired.canary.as_ref().map(|canary| (canary.basis_points, release.updated_at));
        let mut news = News { share, ..News::default() };
        let versions = [canary.version.clone(), canary.champion.clone()];
        let (mut cursor, first) = (analysis.cursor, canary.started_at - HISTORY);
        news.more = true;
        for _ in 0..pages {
            let page = self.store.evidence(&canary.model, &versions, cursor, limit).await?;
            cursor = page.iter().map(|minute| minute.seq).fold(cursor, i64::max);
            let whole = page.len() < limit as usize;
            // Old minutes only move the cursor, which the newest one carries.
            let newest = page.iter().map(|minute| minute.seq).max();
            let wanted =
                page.into_iter().filter(|minute| minute.minute >= first || Some(minute.seq) == newest);
            news.minutes.extend(wanted);
            if whole {
                news.more = false;
                break;
            }
        }
        let pairs =
            |stable, after| self.store.paired_errors(&canary.model, stable, &canary.champion, after, limit);
        let mut cursor = analysis.paired_cursor;
        for page in 1..=pages {
            let found = pairs(&canary.version, cursor).await?;
            cursor = found.iter().map(|pair| pair.seq).fold(cursor, i64::max);
            let whole = found.len() < limit as usize;
            news.pairs.extend(found);
            if whole {
                break;
            }
            news.more |= page == pages;
        }
        if !analysis.frozen && canary.rules.rules.iter().any(|rule| rule.metric == OnlineMetric::AbsError) {
            let (mut cursor, first) = (0, canary.started_at - ERROR_HISTORY);
            loop {
                let found = pairs(&canary.champion, cursor).await?;
                cursor = found.iter().map(|pair| pair.seq).fold(cursor, i64::max);
                let last =
                    found.len() < limit as usize || found.iter().all(|pair| pair.at >= canary.started_at);
                let wanted = found.into_iter().filter(|pair| pair.at >= first && pair.at < canary.started_at);
                news.stable_errors.extend(wanted);
                let excess = news.stable_errors.len().saturating_sub(STABLE_ERRORS);
                news.stable_errors.drain(..excess);
                if last {
                    break;
                }
            }
        }
        if let Some(wanted) = analysis.ripening(canary, now) {
            let (ripe, all) = self.ripe(canary, wanted).await?;
            news.more |= !all;
            news.ripe = Some(ripe);
        }
        if analysis.counts_labels(canary, now) {
            let counts = |version| self.store.labelled(&canary.model, version, canary.started_at);
            let (canary, stable) = (counts(&canary.version).await?, counts(&canary.champion).await?);
            news.labelled = Some(Labelled { canary, stable });
        }
        Ok(news)
    }

    /// What came of age, in pages; false when there is more of it.
    async fn ripe(&self, canary: &CanaryRecord, wanted: Ripening) -> Result<(Ripe, bool), StoreError> {
        let (limit, pages) = PAGE;
        let next = |wanted: Ripening| async move {
            self.store.ripe(&canary.model, &canary.version, &canary.champion, &wanted, limit).await
        };
        let mut ripe = next(wanted).await?;
        for _ in 1..pages {
            if ripe.is_all(&wanted) {
                break;
            }
            let page = next(Ripening { after: Some(ripe.through), ..wanted }).await?;
            ripe.pairs.extend(page.pairs);
            ripe.through = page.through;
        }
        let all = ripe.is_all(&wanted);
        Ok((ripe, all))
    }
}
