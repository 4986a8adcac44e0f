//! stub
/// run
pub async fn run(
    _: &crate::domain::workflow::step::Http,
    _: &super::context::StepContext<'_>,
) -> Result<super::context::StepResult, super::context::StepError> {
    Err(super::context::StepError::Interrupted)
}
