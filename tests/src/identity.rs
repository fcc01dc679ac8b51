//! An identity provider on this machine: signs JWTs, and serves its keys over HTTP on the loopback interface.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256,
    RSA_PSS_SHA256, RsaEncoding, RsaKeyPair,
};
use serde_json::{Value, json};

/// A key of nobody's, for the tests alone: this library makes no keys of this kind itself.
const RSA: &[u8] = include_bytes!("rsa-for-tests.pk8");

/// A key that signs JWTs.
pub struct Signer {
    kid: String,
    alg: &'static str,
    key: Key,
}

enum Key {
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    Rsa(RsaKeyPair, &'static dyn RsaEncoding),
}

impl Signer {
    /// A new P-256 key.
    #[must_use]
    pub fn es256(kid: &str) -> Self {
        let (random, how) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        let made = EcdsaKeyPair::generate_pkcs8(how, &random).expect("a key");
        let key = EcdsaKeyPair::from_pkcs8(how, made.as_ref(), &random).expect("a key");
        Self::new(kid, "ES256", Key::Ecdsa(key))
    }

    /// A new Ed25519 key.
    #[must_use]
    pub fn ed25519(kid: &str) -> Self {
        let made = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("a key");
        let key = Ed25519KeyPair::from_pkcs8(made.as_ref()).expect("a key");
        Self::new(kid, "EdDSA", Key::Ed25519(key))
    }

    /// The RSA key, for `RS256`.
    #[must_use]
    pub fn rs256(kid: &str) -> Self {
        let key = RsaKeyPair::from_pkcs8(RSA).expect("a key");
        Self::new(kid, "RS256", Key::Rsa(key, &RSA_PKCS1_SHA256))
    }

    /// The RSA key, for `PS256`.
    #[must_use]
    pub fn ps256(kid: &str) -> Self {
        let key = RsaKeyPair::from_pkcs8(RSA).expect("a key");
        Self::new(kid, "PS256", Key::Rsa(key, &RSA_PSS_SHA256))
    }

    fn new(kid: &str, alg: &'static str, key: Key) -> Self {
        let kid = kid.to_owned();
        Self { kid, alg, key }
    }

    /// The public key as a JWK.
    #[must_use]
    pub fn jwk(&self) -> Value {
        let (kid, b64) = (&self.kid, |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes));
        match &self.key {
            Key::Ecdsa(key) => {
                let point = key.public_key().as_ref();
                json!({"kty": "EC", "crv": "P-256", "kid": kid, "use": "sig", "x": b64(&point[1..33]), "y": b64(&point[33..])})
            }
            Key::Ed25519(key) => {
                json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": b64(key.public_key().as_ref())})
            }
            Key::Rsa(key, _) => {
                let PublicKeyComponents { n, e } =
                    PublicKeyComponents::<Vec<u8>>::from(key.public());
                json!({"kty": "RSA", "kid": kid, "alg": self.alg, "n": b64(&n), "e": b64(&e)})
            }
        }
    }

    /// The public RSA key in DER, which whoever confuses algorithms takes for a secret.
    #[must_use]
    pub fn public_der(&self) -> Vec<u8> {
        match &self.key {
            Key::Rsa(key, _) => key.public_key().as_ref().to_vec(),
            Key::Ecdsa(key) => key.public_key().as_ref().to_vec(),
            Key::Ed25519(key) => key.public_key().as_ref().to_vec(),
        }
    }

    /// A JWT with these claims.
    #[must_use]
    pub fn sign(&self, claims: &Value) -> String {
        let header = json!({"alg": self.alg, "typ": "JWT", "kid": self.kid});
        self.sign_texts(&header.to_string(), &claims.to_string())
    }

    /// A JWT with this header and this payload, whatever they are.
    #[must_use]
    pub fn sign_texts(&self, header: &str, payload: &str) -> String {
        let signed = unsigned(header, payload);
        let (message, random) = (signed.as_bytes(), SystemRandom::new());
        let signature = match &self.key {
            Key::Ecdsa(key) => key
                .sign(&random, message)
                .expect("signed")
                .as_ref()
                .to_vec(),
            Key::Ed25519(key) => key.sign(message).as_ref().to_vec(),
            Key::Rsa(key, how) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(*how, &random, message, &mut signature)
                    .expect("signed");
                signature
            }
        };
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// The part of a JWT that is signed.
#[must_use]
pub fn unsigned(header: &str, payload: &str) -> String {
    let [header, payload] = [header, payload].map(|part| URL_SAFE_NO_PAD.encode(part));
    format!("{header}.{payload}")
}

/// A JWT that is signed with HMAC-SHA-256.
#[must_use]
pub fn hmac_signed(header: &str, payload: &str, secret: &[u8]) -> String {
    let signed = unsigned(header, payload);
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
    let tag = ring::hmac::sign(&key, signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag))
}

/// Serves the keys of a provider, and the document that names their address.
pub struct KeyServer {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    keys: Mutex<Value>,
    is_away: AtomicBool,
    stops: AtomicBool,
    asked: AtomicUsize,
}

impl KeyServer {
    /// Serves these keys from now on.
    #[must_use]
    pub fn start(keys: &[&Signer]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            keys: Mutex::default(),
            is_away: AtomicBool::new(false),
            stops: AtomicBool::new(false),
            asked: AtomicUsize::new(0),
        });
        let serving = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if serving.stops.load(Ordering::Relaxed) {
                    return;
                }
                let _ = serving.answer(stream, address);
            }
        });
        let server = Self { address, shared };
        server.has(keys);
        server
    }

    /// The issuer, whose configuration names the address of the keys.
    #[must_use]
    pub fn issuer(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The address of the keys.
    #[must_use]
    pub fn jwks_url(&self) -> String {
        format!("{}/keys", self.issuer())
    }

    /// Replaces the keys.
    pub fn has(&self, keys: &[&Signer]) {
        let keys: Vec<Value> = keys.iter().map(|key| key.jwk()).collect();
        *self.shared.keys.lock().expect("not poisoned") = json!({ "keys": keys });
    }

    /// Whether it answers 503 to everything.
    pub fn is_away(&self, is_away: bool) {
        self.shared.is_away.store(is_away, Ordering::Relaxed);
    }

    /// How often it was asked for its keys, away or not.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::Relaxed)
    }
}

impl Drop for KeyServer {
    fn drop(&mut self) {
        self.shared.stops.store(true, Ordering::Relaxed);
        // Wakes the one that listens.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn answer(&self, mut stream: TcpStream, address: SocketAddr) -> std::io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && head.len() < 16 << 10 {
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head);
        let path = head.split(' ').nth(1).unwrap_or_default();
        let body = match path {
            "/keys" => {
                self.asked.fetch_add(1, Ordering::Relaxed);
                self.keys.lock().expect("not poisoned").to_string()
            }
            _ => json!({"issuer": format!("http://{address}"), "jwks_uri": format!("http://{address}/keys")})
                .to_string(),
        };
        let (status, body) = match self.is_away.load(Ordering::Relaxed) {
            true => ("503 Service Unavailable", String::new()),
            false => ("200 OK", body),
        };
        write!(
            stream,
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        )
    }
}
