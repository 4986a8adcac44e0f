//! `smoke = { url, path }`, which every target takes: a version that gets
//! traffic for the first time must answer there before.
//!
//! Never asked of a version that served already: a rollback does not wait.

use std::sync::Arc;

use async_trait::async_trait;

use super::probe::Probe;
use crate::adapter::{AdapterError, Observed, Target, TargetTraits};
use crate::domain::id::{InstanceId, ModelName};
use crate::domain::release::{Release, ReleaseDocument, Served};

/// A target behind a check.
pub(super) struct Smoked {
    /// The target.
    pub target: Arc<dyn Target>,
    /// The check.
    pub smoke: Probe,
}

#[async_trait]
impl Target for Smoked {
    fn traits(&self) -> TargetTraits {
        self.target.traits()
    }

    async fn read(&self, model: &ModelName) -> Result<Option<Observed>, AdapterError> {
        self.target.read(model).await
    }

    async fn apply(&self, release: &Release, instance: InstanceId) -> Result<(), AdapterError> {
        if newcomer(release, None).is_some() {
            let there = match self.target.read(&release.model).await {
                Ok(there) => there.map(|there| there.document),
                // A host that cannot be read gets no canary; taking one away is for `apply` to try.
                Err(_) if release.desired.canary.is_none() => {
                    return self.target.apply(release, instance).await;
                }
                Err(error) => return Err(error),
            };
            if let Some(served) = newcomer(release, there.as_ref()) {
                self.check_version(release.model.as_str(), served).await?;
            }
        }
        self.target.apply(release, instance).await
    }

    async fn check(&self) -> Result<String, AdapterError> {
        self.target.check().await
    }
}

/// The version that did not serve before: a canary, or the first champion.
fn newcomer<'r>(release: &'r Release, there: Option<&ReleaseDocument>) -> Option<&'r Served> {
    let served = match (&release.desired.canary, &release.desired.champion) {
        (Some(canary), _) => &canary.served,
        (None, Some(champion)) if there.is_none() => champion,
        (None, _) => return None,
    };
    let serves = there.is_some_and(|there| {
        there.canary.as_ref().is_some_and(|canary| canary.served.version == served.version)
            || there.champion.as_ref().is_some_and(|champion| champion.version == served.version)
    });
    (!serves).then_some(served)
}

impl Smoked {
    async fn check_version(&self, model: &str, served: &Served) -> Result<(), AdapterError> {
        let version = served.version.as_str();
        let answer = self.smoke.ask(model, version, &served.base_url).await?;
        if !self.smoke.says_version() {
            return Ok(());
        }
        let said = self.smoke.version_in(&answer)?;
        if said == version {
            return Ok(());
        }
        Err(AdapterError::Rejected {
            service: "the smoke check".to_owned(),
            action: format!("pass {version}"),
            cause: format!("it answered with version {}", crate::http_client::excerpt(&said)),
        })
    }
}
