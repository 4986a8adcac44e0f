//! The vendor's own client, npm `@vercel/blob`: it judges the service that the
//! tests talk to, and reads back what refit wrote.

use object_store::ObjectStoreExt;
use refit::artifacts::sealed;
use refit::artifacts::upload::CHUNK;
use serde_json::{Value, json};

use super::suite::{Training, model, name};
use crate::support::line::Op;
use crate::support::node;
use crate::support::vercel_blob::{Access, VercelBlob};

async fn node(service: &VercelBlob, module: &str) -> Value {
    let (url, token) = (service.api_url(), VercelBlob::token());
    let env = [
        ("VERCEL_BLOB_API_URL", url.as_str()),
        ("BLOB_READ_WRITE_TOKEN", &token),
        ("VERCEL_BLOB_RETRIES", "1"),
    ];
    node::run(module, &env).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_client_does_all_it_can() {
    let service = VercelBlob::start(Access::Public);
    service.page_at_most(2);
    let said = node(&service, r#"
        import * as blob from '@vercel/blob';
        const access = 'public', said = {};
        const a = await blob.put('m/v1/größe 2+3.json', '{"a":1}', { access });
        said.put = [a.pathname, a.contentType, await (await fetch(a.url)).text()];
        const large = Buffer.alloc(8 * 1024 * 1024 * 2 + 5, 7);
        const b = await blob.put('m/v1/large.bin', large, { access, multipart: true });
        said.large = [(await blob.head(b.url)).size, (await (await fetch(b.url)).arrayBuffer()).byteLength];
        const up = await blob.createMultipartUpload('m/v1/by-hand.bin', { access });
        const options = { access, key: up.key, uploadId: up.uploadId };
        const part = (n, size) => blob.uploadPart('m/v1/by-hand.bin', Buffer.alloc(size, n), { ...options, partNumber: n });
        const parts = [await part(2, 10), await part(1, 5 * 1024 * 1024)];
        await blob.completeMultipartUpload('m/v1/by-hand.bin', parts, options);
        const head = await blob.head('m/v1/by-hand.bin');
        const bytes = Buffer.from(await (await fetch(head.url)).arrayBuffer());
        said.byHand = [head.size, bytes[0], bytes[bytes.length - 1], head.contentType];
        await blob.copy(a.url, 'm/v2/copied.json', { access });
        await blob.put('other.txt', 'x', { access, addRandomSuffix: true });
        const all = []; let cursor;
        do { const page = await blob.list({ cursor }); all.push(...page.blobs.map(b => b.pathname)); cursor = page.cursor; } while (cursor);
        said.list = all.map(name => name.replace(/-[0-9a-f]{32}/, '-random'));
        const folded = await blob.list({ prefix: 'm/', mode: 'folded' });
        said.folded = [folded.folders, folded.blobs.length];
        const refused = async f => { try { await f(); return 'done' } catch (e) { return e.constructor.name + ': ' + e.message } };
        said.again = await refused(() => blob.put('m/v1/large.bin', 'x', { access }));
        said.over = (await blob.put('m/v1/by-hand.bin', 'new', { access, allowOverwrite: true })).pathname;
        said.old = await refused(() => blob.put('m/v1/by-hand.bin', 'newer', { access, ifMatch: head.etag }));
        const now = await blob.head('m/v1/by-hand.bin');
        said.match = (await blob.put('m/v1/by-hand.bin', 'newer', { access, ifMatch: now.etag })).pathname;
        said.private = await refused(() => blob.put('m/x', 'x', { access: 'private' }));
        await blob.del([a.url, 'm/v1/large.bin', 'was/never/there']);
        said.gone = await refused(() => blob.head(a.url));
        said.token = await refused(() => blob.head('m/v1/by-hand.bin', { token: 'vercel_blob_rw_aB3dE5gH7jK9mN1p_wrong' }));
        console.log(JSON.stringify(said));
    "#).await;
    let expected = json!({
        "put": ["m/v1/größe 2+3.json", "application/json", "{\"a\":1}"],
        "large": [2 * CHUNK + 5, 2 * CHUNK + 5],
        "byHand": [5 * 1024 * 1024 + 10, 1, 2, "application/octet-stream"],
        "list": ["m/v1/by-hand.bin", "m/v1/größe 2+3.json", "m/v1/large.bin", "m/v2/copied.json", "other-random.txt"],
        "folded": [["m/v1/", "m/v2/"], 0],
        "over": "m/v1/by-hand.bin", "match": "m/v1/by-hand.bin",
    });
    for (key, expected) in expected.as_object().expect("an object") {
        assert_eq!(&said[key], expected, "{key}");
    }
    for (key, part) in [
        ("again", "This blob already exists"),
        ("old", "BlobPreconditionFailedError"),
        ("private", "private access"),
        ("gone", "BlobNotFoundError"),
        ("token", "BlobAccessError"),
    ] {
        assert!(said[key].as_str().is_some_and(|text| text.contains(part)), "{key}: {}", said[key]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_client_knows_the_errors() {
    let service = VercelBlob::start(Access::Public);
    for (fault, class) in [
        (service.rate_limited("7"), "BlobServiceRateLimited 7"),
        (service.refused(403, "store_suspended"), "BlobStoreSuspendedError"),
        (service.refused(404, "store_not_found"), "BlobStoreNotFoundError"),
        (service.refused(503, "service_unavailable"), "BlobServiceNotAvailable"),
        (service.refused(404, "not_found"), "BlobNotFoundError"),
        (service.refused(412, "precondition_failed"), "BlobPreconditionFailedError"),
        (service.expired(), "BlobAccessError"),
    ] {
        service.mend();
        service.fault(service.on(fault.clone(), |call| call.op == Op::Head));
        let said = node(&service, "
            import { head } from '@vercel/blob';
            try { await head('x'); console.log('0'); }
            catch (e) { console.log(JSON.stringify((e.constructor.name + ' ' + (e.retryAfter ?? '')).trim())); }
        ").await;
        assert_eq!(said, json!(class), "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_client_reads_what_refit_wrote() {
    let service = VercelBlob::start(Access::Public);
    let store = super::vercel_blob(&service, Access::Public, "models");
    let training = Training::of(&[("größe 2.json", 1_000), ("large.bin", CHUNK * 2 + 9)]);
    let sealed = training.publish(&store, "1").await.expect("published");
    let said = node(&service, "
        import { list, head } from '@vercel/blob';
        import { createHash } from 'node:crypto';
        const said = {};
        for (const blob of (await list({ prefix: 'models/race-times/1/' })).blobs) {
            const bytes = Buffer.from(await (await fetch((await head(blob.pathname)).url)).arrayBuffer());
            said[blob.pathname.split('/').pop()] = [blob.size, createHash('sha256').update(bytes).digest('hex')];
        }
        console.log(JSON.stringify(said));
    ").await;
    for file in &sealed.manifest.files {
        assert_eq!(said[&file.path], json!([file.size, file.sha256]), "{}", file.path);
    }
    assert_eq!(said["manifest.json"][1], json!(sealed.sha256));
    // An app goes by what the release document says.
    let base = store.base_url(&model(), &name("1")).expect("known");
    let by_app =
        reqwest::get(format!("{base}/manifest.json")).await.expect("answered").bytes().await.expect("read");
    assert_eq!(serde_json::from_slice::<Value>(&by_app).expect("JSON")["version"], json!("1"));
    // And the other way: what the client put there, refit finds damaged.
    node(
        &service,
        "
        import { put } from '@vercel/blob';
        await put('models/race-times/1/large.bin', 'x', { access: 'public', allowOverwrite: true });
        console.log('1');
    ",
    )
    .await;
    sealed::verify(&store, &model(), &name("1")).await.expect_err("damaged");
    store.objects.delete(&super::suite::object(&store, "1", "manifest.json")).await.expect("deleted");
    assert!(super::suite::listed(&store).await.is_empty());
}
