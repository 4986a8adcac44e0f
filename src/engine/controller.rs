//! stub
impl super::Engine {
    /// l
    pub async fn look_at_canaries(self: &std::sync::Arc<Self>) -> Result<usize, crate::store::StoreError> {
        Ok(0)
    }
    /// r
    pub async fn reconcile_releases(self: &std::sync::Arc<Self>) -> Result<usize, crate::store::StoreError> {
        Ok(0)
    }
}
