//! stub
/// d
pub async fn drain_once(
    _: &dyn crate::store::Store,
    _: &super::Notifiers,
    _: &dyn crate::clock::Clock,
) -> Result<usize, crate::store::StoreError> {
    Ok(0)
}
