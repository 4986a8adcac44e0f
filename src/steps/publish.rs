//! stub
use serde::{Deserialize, Serialize};
/// out
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PublishOutput {
    /// v
    pub version: crate::domain::id::VersionName,
    /// s
    pub store: crate::domain::id::StoreName,
    /// b
    pub base_url: String,
    /// m
    pub manifest_sha256: String,
}
/// run
pub async fn run(
    _: &crate::domain::workflow::step::Publish,
    _: &super::context::StepContext<'_>,
) -> Result<super::context::StepResult, super::context::StepError> {
    Err(super::context::StepError::Interrupted)
}
