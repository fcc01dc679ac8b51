//! JWTs that prove something, and the many that do not.

use millrace_model::Advised as _;
use millrace_tests::identity::{Signer, hmac_signed, unsigned};
use proptest::prelude::*;
use serde_json::json;

use super::super::bounds::{CLAIMS_DEPTH_MAX, JWT_BYTES_MAX};
use super::super::settings::ProviderSettings;
use super::*;

const ISSUER: &str = "https://id.example";
/// Seconds since the Unix epoch.
const NOW: u64 = 1_800_000_000;

fn settings() -> ProviderSettings {
    ProviderSettings {
        issuer: ISSUER.to_owned(),
        audience: vec!["mill".to_owned(), "other-mill".to_owned()],
        jwks_file: Some("keys.json".into()),
        principal: Some("users".to_owned()),
        ..ProviderSettings::default()
    }
}

fn keys(signers: &[&Signer]) -> Keys {
    let keys: Vec<Value> = signers.iter().map(|signer| signer.jwk()).collect();
    Keys::read(json!({ "keys": keys }).to_string().as_bytes()).expect("keys")
}

fn claims() -> Value {
    json!({"iss": ISSUER, "aud": "mill", "sub": "ann", "exp": NOW + 600, "nbf": NOW - 10, "iat": NOW - 10})
}

fn with(name: &str, value: impl Into<Value>) -> Value {
    let mut claims = claims();
    claims[name] = value.into();
    claims
}

fn without(name: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().expect("claims").remove(name);
    claims
}

fn judged(
    jwt: &str,
    keys: &Keys,
    settings: &ProviderSettings,
    now: u64,
) -> Result<Verified, Refusal> {
    let providers = Provider::all(std::slice::from_ref(settings)).expect("settings");
    let jwt = Jwt::read(jwt)?;
    let at = provider_of(&jwt.claims, &providers)?;
    verify(&jwt, keys, &providers[at], Timestamp(now * 1_000))
}

/// What a JWT with these claims proves to a host with these settings.
fn said(settings: &ProviderSettings, claims: &Value) -> Result<Verified, Refusal> {
    let signer = Signer::ed25519("k");
    judged(&signer.sign(claims), &keys(&[&signer]), settings, NOW)
}

#[test]
fn a_jwt_of_each_algorithm_proves_who_sends_it() {
    let mut settings = settings();
    settings.algorithms.push("PS256".to_owned());
    for signer in [
        Signer::es256("a"),
        Signer::ed25519("b"),
        Signer::rs256("c"),
        Signer::ps256("d"),
    ] {
        let jwt = signer.sign(&claims());
        let Presented {
            principal,
            subject,
            scope,
            keys: patterns,
            until,
        } = judged(&jwt, &keys(&[&signer]), &settings, NOW)
            .expect("proved")
            .presented;
        assert_eq!(principal.as_str(), "users");
        assert_eq!(subject.as_deref(), Some("ann"));
        assert_eq!((scope, patterns), (None, None));
        assert_eq!(until, Timestamp((NOW + 630) * 1_000));
        // Without a `kid`, the only key for its algorithm is meant.
        let header = json!({"alg": "EdDSA"}).to_string();
        let other = Signer::ed25519("e");
        let both = keys(&[&signer, &other]);
        let unnamed = other.sign_texts(&header, &claims().to_string());
        let is_clear = !signer.jwk()["crv"].to_string().contains("Ed25519");
        assert_eq!(judged(&unnamed, &both, &settings, NOW).is_ok(), is_clear);
    }
}

#[test]
fn what_a_hostile_sender_may_try_is_refused() {
    let (rsa, ec) = (Signer::rs256("r"), Signer::es256("e"));
    let (known, settings) = (keys(&[&rsa, &ec]), settings());
    let right = claims().to_string();
    let header = |alg: &str, kid: &str| json!({"alg": alg, "kid": kid}).to_string();
    let es = header("ES256", "e");
    let sealed = ec.sign(&claims());
    let (signed, signature) = sealed.rsplit_once('.').expect("a signature");
    let other_payload = unsigned(
        &json!({"alg": "ES256", "typ": "JWT", "kid": "e"}).to_string(),
        &with("sub", "root").to_string(),
    );
    let stranger = Signer::es256("e");
    let missing = |name: &str| Refusal::Missing(name.to_owned());
    let kind = |name: &str| Refusal::Kind(name.to_owned());
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    let with_more = |more: &str| format!("{},{more}}}", right.trim_end_matches('}'));
    let of_ec = |payload: &str| ec.sign_texts(&es, payload);
    let algorithm = |name: &str| Refusal::Algorithm(name.to_owned());
    let table: Vec<(&str, String, Refusal)> = vec![
        (
            "no algorithm",
            unsigned(&header("none", "r"), &right) + ".",
            algorithm("none"),
        ),
        (
            "no algorithm, spelt otherwise",
            unsigned(&header("nOnE", "r"), &right) + ".",
            algorithm("nOnE"),
        ),
        (
            "an HMAC with the public key in DER",
            hmac_signed(&header("HS256", "r"), &right, &rsa.public_der()),
            algorithm("HS256"),
        ),
        (
            "an HMAC with the modulus",
            hmac_signed(
                &header("HS256", "r"),
                &right,
                rsa.jwk()["n"].as_str().expect("n").as_bytes(),
            ),
            algorithm("HS256"),
        ),
        (
            "an HMAC that says it is RSA",
            hmac_signed(&header("RS256", "r"), &right, &rsa.public_der()),
            Refusal::Signature,
        ),
        (
            "an algorithm that the settings do not have",
            rsa.sign_texts(&header("RS512", "r"), &right),
            algorithm("RS512"),
        ),
        (
            "another algorithm than the key's",
            ec.sign_texts(&header("RS256", "e"), &right),
            Refusal::UnknownKey,
        ),
        (
            "EdDSA with the key of another curve",
            ec.sign_texts(&header("EdDSA", "e"), &right),
            Refusal::UnknownKey,
        ),
        ("no signature", format!("{signed}."), Refusal::Signature),
        (
            "a signature of zeroes",
            format!("{signed}.{}", "A".repeat(86)),
            Refusal::Signature,
        ),
        (
            "another payload",
            format!("{other_payload}.{signature}"),
            Refusal::Signature,
        ),
        (
            "a stranger's key under a known name",
            stranger.sign(&claims()),
            Refusal::Signature,
        ),
        (
            "a key that nobody knows",
            ec.sign_texts(&header("ES256", "x"), &right),
            Refusal::UnknownKey,
        ),
        (
            "a key in the header",
            {
                let own = json!({"alg": "ES256", "kid": "e", "jwk": stranger.jwk()});
                stranger.sign_texts(&own.to_string(), &right)
            },
            Refusal::Signature,
        ),
        (
            "a critical extension",
            ec.sign_texts(
                r#"{"alg":"ES256","kid":"e","crit":["b64"],"b64":false}"#,
                &right,
            ),
            Refusal::Critical,
        ),
        (
            "a logout token",
            ec.sign_texts(r#"{"alg":"ES256","kid":"e","typ":"logout+jwt"}"#, &right),
            Refusal::Type("logout+jwt".to_owned()),
        ),
        (
            "another issuer",
            ec.sign(&with("iss", "https://evil.example")),
            Refusal::UnknownIssuer("https://evil.example".to_owned()),
        ),
        (
            "an issuer that only begins so",
            ec.sign(&with("iss", format!("{ISSUER}.evil"))),
            Refusal::UnknownIssuer(format!("{ISSUER}.evil")),
        ),
        ("no issuer", ec.sign(&without("iss")), missing("iss")),
        (
            "another audience",
            ec.sign(&with("aud", "windmill")),
            Refusal::Audience,
        ),
        (
            "several other audiences",
            ec.sign(&with("aud", json!(["a", "b", 7]))),
            Refusal::Audience,
        ),
        ("no audience", ec.sign(&without("aud")), missing("aud")),
        (
            "an audience that is no text",
            ec.sign(&with("aud", json!({"mill": true}))),
            kind("aud"),
        ),
        ("expired", ec.sign(&with("exp", NOW - 30)), Refusal::Expired),
        (
            "expired before there was time",
            ec.sign(&with("exp", -1e300)),
            Refusal::Expired,
        ),
        ("no expiry", ec.sign(&without("exp")), missing("exp")),
        (
            "an expiry that is null",
            ec.sign(&with("exp", Value::Null)),
            kind("exp"),
        ),
        (
            "an expiry as a text",
            ec.sign(&with("exp", (NOW + 600).to_string())),
            kind("exp"),
        ),
        (
            "not yet valid",
            ec.sign(&with("nbf", NOW + 31)),
            Refusal::NotYet,
        ),
        (
            "a beginning as a text",
            ec.sign(&with("nbf", "0")),
            kind("nbf"),
        ),
        (
            "issued in the future",
            ec.sign(&with("iat", NOW + 31)),
            Refusal::NotYet,
        ),
        (
            "a subject that is no text",
            ec.sign(&with("sub", json!(["ann"]))),
            kind("sub"),
        ),
        (
            "a claim twice",
            of_ec(&with_more(r#""sub":"root""#)),
            Refusal::Twice("payload"),
        ),
        (
            "a nested claim twice",
            of_ec(&with_more(r#""x":{"a":1,"a":2}"#)),
            Refusal::Twice("payload"),
        ),
        (
            "a claim twice, once escaped",
            of_ec(&with_more(r#""\u0073ub":"root""#)),
            Refusal::Twice("payload"),
        ),
        (
            "an algorithm twice",
            ec.sign_texts(r#"{"alg":"none","alg":"ES256","kid":"e"}"#, &right),
            Refusal::Twice("header"),
        ),
        (
            "nested claims",
            of_ec(&with_more(&format!("\"x\":{}", nested(CLAIMS_DEPTH_MAX)))),
            Refusal::TooDeep("payload"),
        ),
        (
            "very nested claims",
            of_ec(&with_more(&format!("\"x\":{}", nested(5_000)))),
            Refusal::TooDeep("payload"),
        ),
        (
            "a payload that is a text",
            of_ec("\"ann\""),
            Refusal::NotJson("payload"),
        ),
        (
            "a payload with more behind it",
            of_ec(&format!("{right}{right}")),
            Refusal::NotJson("payload"),
        ),
        (
            "a header that is a list",
            ec.sign_texts("[]", &right),
            Refusal::NotJson("header"),
        ),
        (
            "no algorithm at all",
            ec.sign_texts(r#"{"kid":"e"}"#, &right),
            missing("alg"),
        ),
        ("padding", format!("{sealed}="), Refusal::NotCompact),
        (
            "white space",
            format!("{signed} .{signature}"),
            Refusal::NotCompact,
        ),
        ("two parts", signed.to_owned(), Refusal::NotCompact),
        (
            "five parts, as of an encrypted one",
            format!("{sealed}.a.b"),
            Refusal::NotCompact,
        ),
        ("nothing", "..".to_owned(), Refusal::NotJson("header")),
    ];
    for (what, jwt, expected) in table {
        let refused = judged(&jwt, &known, &settings, NOW).map(|proved| proved.presented);
        assert_eq!(
            refused.as_ref().err(),
            Some(&expected),
            "{what}: {refused:?}"
        );
        let advice = expected.advice();
        let text = format!("{expected} {} {expected:?}", advice.hint);
        assert!(
            !text.contains(signature) && !advice.hint.is_empty(),
            "{what}"
        );
    }
    let huge = ec.sign(&with("x", "x".repeat(JWT_BYTES_MAX)));
    let refused = judged(&huge, &known, &settings, NOW).map(|proved| proved.presented);
    assert_eq!(refused.err(), Some(Refusal::TooLong(huge.len())));
    // What they were made from is accepted.
    judged(&sealed, &known, &settings, NOW).expect("proved");
    let deep = of_ec(&with_more(&format!(
        "\"x\":{}",
        nested(CLAIMS_DEPTH_MAX - 1)
    )));
    judged(&deep, &known, &settings, NOW).expect("proved");
}

#[test]
fn leeway_is_given_to_both_ends_and_no_more() {
    let signer = Signer::ed25519("k");
    let (known, settings) = (keys(&[&signer]), settings());
    let jwt = signer.sign(
        &json!({"iss": ISSUER, "aud": ["x", "other-mill"], "nbf": NOW, "exp": NOW as f64 + 100.5}),
    );
    for (now, counts) in [
        (NOW - 31, false),
        (NOW - 30, true),
        (NOW + 130, true),
        (NOW + 131, false),
    ] {
        assert_eq!(
            judged(&jwt, &known, &settings, now).is_ok(),
            counts,
            "{now}"
        );
    }
    let forever = signer.sign(&with("exp", 1e300));
    let until = judged(&forever, &known, &settings, NOW)
        .expect("proved")
        .presented
        .until;
    assert_eq!(until, Timestamp(u64::MAX));
}

#[test]
fn a_claim_names_the_principal_if_the_settings_say_so() {
    let mut settings = settings();
    settings.principal = None;
    settings.principal_claim = Some("mill.role".to_owned());
    let proved = said(&settings, &with("mill", json!({"role": "clerks"}))).expect("proved");
    assert_eq!(proved.presented.principal.as_str(), "clerks");
    for (claims, expected) in [
        (claims(), Refusal::Missing("mill.role".to_owned())),
        (
            with("mill", json!({"role": ["clerks"]})),
            Refusal::Kind("mill.role".to_owned()),
        ),
        (
            with("mill", json!({"role": "no name"})),
            Refusal::NoName("mill.role".to_owned()),
        ),
    ] {
        assert_eq!(said(&settings, &claims).err().as_ref(), Some(&expected));
    }
}

#[test]
fn rules_in_a_claim_are_a_list_or_words_of_a_scope() {
    let mut settings = settings();
    settings.rules_claim = Some("scope".to_owned());
    let scope = |value: Value| {
        let proved = said(&settings, &with("scope", value))?;
        let rules = proved.presented.scope.expect("a scope");
        Ok::<_, Refusal>(rules.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let expected = ["consume on topic:orders-*", "viewer"];
    let words = "openid consume:topic:orders-* email viewer consume:everything";
    assert_eq!(scope(words.into()).expect("rules"), expected);
    let list = json!(["consume on topic:orders-*", "openid", "viewer", 7]);
    assert_eq!(scope(list).expect("rules"), expected);
    // What has no rules allows nothing.
    assert_eq!(scope("openid".into()).expect("rules"), [""; 0]);
    assert_eq!(
        said(&settings, &claims()).err(),
        Some(Refusal::Missing("scope".to_owned()))
    );
    assert!(scope(7.into()).is_err());
    assert!(scope("viewer ".repeat(PRINCIPAL_RULES_MAX + 1).into()).is_err());
}

#[test]
fn a_subject_in_records_is_cut_and_harmless() {
    let long = "é".repeat(SUBJECT_BYTES_MAX);
    for (subject, expected) in [
        ("a\nb", "a\\nb"),
        (long.as_str(), &long[..SUBJECT_BYTES_MAX]),
    ] {
        let proved = said(&settings(), &with("sub", subject)).expect("proved");
        assert_eq!(proved.presented.subject.as_deref(), Some(expected));
    }
}

#[test]
fn keys_of_other_kinds_are_passed_over_and_a_jwks_of_only_those_is_not_used() {
    let signer = Signer::es256("k");
    let mut encrypts = Signer::es256("e").jwk();
    encrypts["use"] = "enc".into();
    let secret = json!({"kty": "oct", "kid": "k", "k": "c2VjcmV0", "alg": "HS256"});
    let short = json!({"kty": "RSA", "kid": "s", "n": "AQAB".repeat(40), "e": "AQAB"});
    let others = [secret, encrypts, short, json!({"kty": "new"}), json!(7)];
    let jwks = |keys: &[Value]| Keys::read(json!({ "keys": keys }).to_string().as_bytes());
    assert!(jwks(&others).is_err());
    let all = jwks(&[&others[..], &[signer.jwk()]].concat()).expect("keys");
    assert_eq!(all.len(), 1);
    judged(&signer.sign(&claims()), &all, &settings(), NOW).expect("proved");
    assert!(jwks(&vec![signer.jwk(); 200]).is_err(), "too many");
    for wrong in ["", "{}", "[]", r#"{"keys":{}}"#] {
        assert!(Keys::read(wrong.as_bytes()).is_err(), "{wrong}");
    }
}

#[test]
fn settings_that_could_let_somebody_else_in_are_refused() {
    let refused = |change: fn(&mut ProviderSettings)| {
        let mut settings = settings();
        change(&mut settings);
        Provider::all(&[settings])
            .map(drop)
            .expect_err("refused")
            .to_string()
    };
    for (change, why) in [
        ((|s| s.issuer.clear()) as fn(&mut ProviderSettings), "iss"),
        (|s| s.audience.clear(), "aud"),
        (|s| s.algorithms = vec!["none".to_owned()], "RS256"),
        (|s| s.algorithms = vec!["HS256".to_owned()], "RS256"),
        (|s| s.algorithms.clear(), "at least one"),
        (|s| s.principal = None, "principal_claim"),
        (
            |s| s.principal_claim = Some("role".to_owned()),
            "principal_claim",
        ),
        (|s| s.leeway_s = 301, "maximum"),
        (|s| s.keys = Some(Vec::new()), "at least one"),
        (|s| s.keys = Some(vec!["user:{sub}*".to_owned()]), "anna"),
        (
            |s| s.jwks_url = Some("https://id.example/keys".to_owned()),
            "jwks_file",
        ),
        (
            |s| {
                s.jwks_file = None;
                s.jwks_url = Some("http://id.example/keys".to_owned())
            },
            "https",
        ),
        (
            |s| {
                s.jwks_file = None;
                s.jwks_url = Some("http://127.0.0.1@id.example/".to_owned())
            },
            "https",
        ),
        (
            |s| {
                s.jwks_file = None;
                s.issuer = "http://id.example".to_owned()
            },
            "jwks_file",
        ),
        (
            |s| {
                s.jwks_file = None;
                s.issuer = "accounts".to_owned()
            },
            "jwks_file",
        ),
    ] {
        let told = refused(change);
        assert!(
            told.contains(why) && told.contains("access.providers"),
            "{told}"
        );
    }
    let mut other = settings();
    other.audience = vec!["mill".to_owned()];
    assert!(
        Provider::all(&[settings(), other.clone()]).is_err(),
        "both count for one JWT"
    );
    other.audience = vec!["windmill".to_owned()];
    Provider::all(&[settings(), other]).expect("two audiences of one issuer");
}

proptest! {
    #[test]
    fn no_text_is_a_jwt_by_chance(text in "[A-Za-z0-9_.-]{0,80}|\\PC{0,40}") {
        let signer = Signer::ed25519("k");
        prop_assert!(judged(&text, &keys(&[&signer]), &settings(), NOW).is_err());
    }

    #[test]
    fn a_jwt_with_one_other_byte_proves_nothing(at in any::<prop::sample::Index>(), by in 1u8..64) {
        let signer = Signer::ed25519("k");
        let mut jwt = signer.sign(&claims()).into_bytes();
        let at = at.index(jwt.len());
        jwt[at] = jwt[at].wrapping_add(by) & 0x7f;
        let text = String::from_utf8(jwt).expect("ASCII");
        prop_assert!(judged(&text, &keys(&[&signer]), &settings(), NOW).is_err());
    }
}
