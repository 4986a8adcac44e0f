//! The clients that apps copy: the same behaviour in every language, against a real server.
#![cfg(target_os = "linux")]

mod app;
mod relay;
mod releases;
mod reports;
mod typescript;
mod vectors;

/// The TypeScript client, as Node runs it.
pub fn client() -> std::path::PathBuf {
    typescript::compiled(&app::file("typescript/refit.ts"))
}

/// Makes a test of each function for each language.
macro_rules! in_every_language {
    ($($test:ident)*) => {
        mod typescript {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test($crate::clients::app::Language::TypeScript).await;
            })*
        }
        mod python {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test($crate::clients::app::Language::Python).await;
            })*
        }
    };
}
use in_every_language;
