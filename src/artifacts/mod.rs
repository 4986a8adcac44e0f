//! stub
/// v
pub async fn verify(
    _: &crate::adapter::ArtifactStore,
    _: &crate::domain::id::ModelName,
    _: &crate::domain::id::VersionName,
    _: &str,
) -> Result<(), crate::adapter::AdapterError> {
    Ok(())
}
