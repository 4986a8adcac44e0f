use super::*;

fn asked(contract: &Contract, method: &str, uri: &str, token: bool, body: &Value) -> Vec<String> {
    let request = Request::builder().method(method).uri(uri).header("content-type", "application/json");
    let request = if token { request.header("authorization", "Bearer t") } else { request };
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    contract.judge_request(&Asked::of(&request.body(Body::empty()).expect("a request")), &body)
}

#[test]
fn a_request_that_the_vendor_would_take_passes_and_no_other_does() {
    let vercel = Contract::of("vercel");
    let uri = "/v10/projects/p/env?upsert=true&teamId=team_1";
    let good = json!({"key": "MODEL_VERSION", "value": "v1", "type": "plain", "target": ["production"]});
    assert_eq!(asked(&vercel, "POST", uri, true, &good), [""; 0]);
    let refused = [
        ("POST", "/v10/project/p/env", true, good.clone(), "no such operation"),
        ("PUT", uri, true, good.clone(), "no such operation"),
        ("POST", "/v10/projects/p/env?upsrt=true", true, good.clone(), "unknown query parameter `upsrt`"),
        ("POST", uri, false, good.clone(), "no bearer token"),
        ("POST", uri, true, Value::Null, "the body is missing"),
        ("POST", uri, true, json!({"key": "K", "value": "v", "target": ["production"]}), "oneOf"),
        ("POST", uri, true, json!({"key": 7, "value": "v", "type": "plain", "target": ["production"]}), ""),
    ];
    for (method, uri, token, body, why) in refused {
        let wrong = asked(&vercel, method, uri, token, &body).join("\n");
        assert!(!wrong.is_empty() && wrong.contains(why), "{method} {uri} {body}: {wrong}");
    }
    let mut unknown = good;
    unknown["operation_id"] = json!("x");
    assert_ne!(asked(&vercel, "PATCH", "/v9/projects/p/env/e1", true, &unknown), [""; 0]);
}

#[test]
fn forms_and_absent_answers_are_judged() {
    let slack = Contract::of("slack");
    let form = |text: &str| {
        let request = Request::post("/api/chat.postMessage")
            .header("content-type", "application/x-www-form-urlencoded")
            .header("authorization", "Bearer t");
        let request = request.body(Body::empty()).expect("a request");
        slack.judge_request(&Asked::of(&request), text.as_bytes())
    };
    assert_eq!(form("channel=C1&text=12&blocks=%5B%5D&unfurl_links=false"), [""; 0]);
    assert_ne!(form("text=hello"), [""; 0], "no channel");

    let vercel = Contract::of("vercel");
    let answered = |status: u16, body: &str| {
        let status = StatusCode::from_u16(status).expect("a status");
        let request = Request::patch("/v1/global-config/ecfg_1/items").body(Body::empty());
        let asked = Asked::of(&request.expect("a request"));
        vercel.judge_answer(&asked, status, body.as_bytes())
    };
    assert_eq!(answered(200, r#"{"status":"ok"}"#), [""; 0]);
    assert_eq!(answered(429, "slow down"), [""; 0]);
    assert_ne!(answered(200, "{}"), [""; 0]);
    assert_ne!(answered(204, ""), [""; 0]);
    assert_ne!(answered(404, "nothing here"), [""; 0]);
}

#[test]
fn operations_of_one_path_are_told_apart_by_their_parameters() {
    let blob = Contract::of("vercel-blob");
    let asked = |method: &str, uri: &str, headers: &[(&str, &str)], body: &str| {
        let usual = [("authorization", "Bearer t"), ("x-api-version", "12")];
        let request = Request::builder().method(method).uri(format!("/api/blob{uri}"));
        let request = usual.iter().chain(headers).fold(request, |it, (name, value)| it.header(*name, *value));
        blob.judge_request(&Asked::of(&request.body(Body::empty()).expect("a request")), body.as_bytes())
    };
    let public = ("x-vercel-blob-access", "public");
    assert_eq!(asked("PUT", "/?pathname=a.json", &[public], "bytes"), [""; 0]);
    assert_eq!(asked("PUT", "/?pathname=a.json", &[], "bytes"), ["header `x-vercel-blob-access` is missing"]);
    assert_eq!(asked("GET", "?url=a.json", &[], ""), [""; 0]);
    assert_eq!(asked("GET", "?prefix=a&limit=1001", &[], ""), ["query parameter `limit` is \"1001\""]);
    let part = [("x-mpu-action", "upload"), ("x-mpu-key", "k"), ("x-mpu-upload-id", "u"), public];
    assert_eq!(asked("POST", "/mpu?pathname=a", &part, "bytes"), ["header `x-mpu-part-number` is missing"]);
    let done = [("x-mpu-action", "complete"), ("x-mpu-key", "k"), ("x-mpu-upload-id", "u"), public];
    let done = done.iter().copied().chain([("content-type", "application/json")]).collect::<Vec<_>>();
    assert_eq!(asked("POST", "/mpu?pathname=a", &done, r#"[{"partNumber":1,"etag":"e"}]"#), [""; 0]);
    assert_ne!(asked("POST", "/mpu?pathname=a", &done, r#"[{"part":1}]"#), [""; 0]);
    assert_eq!(
        asked("PUT", "/?pathname=a", &[public, ("x-overwrite", "1")], "b"),
        ["unknown header `x-overwrite`"]
    );

    let slack = Contract::of("slack-webhook");
    let request = Request::post("/services/T0/B0/x").body(Body::empty()).expect("a request");
    let answered = |status, body: &str| slack.judge_answer(&Asked::of(&request), status, body.as_bytes());
    assert_eq!(answered(StatusCode::OK, "ok"), [""; 0]);
    assert_ne!(answered(StatusCode::OK, "{}"), [""; 0]);
    assert_eq!(answered(StatusCode::NOT_FOUND, "no_service"), [""; 0]);
}
