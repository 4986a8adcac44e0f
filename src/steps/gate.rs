//! stub
/// run
pub async fn run(
    _: &crate::domain::workflow::step::Gate,
    _: &super::context::StepContext<'_>,
) -> Result<super::context::StepResult, super::context::StepError> {
    Err(super::context::StepError::Interrupted)
}
/// out
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct GateOutput {
    /// c
    pub champion: Option<crate::domain::id::VersionName>,
}
