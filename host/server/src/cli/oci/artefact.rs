//! A module as registries keep it: a manifest, a configuration and one layer, by the convention for WebAssembly (media types
//! `application/vnd.wasm.config.v0+json` and `application/wasm`). The signature travels as an annotation of the manifest.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::super::failure::Failure;
use super::super::table::items;
use super::reference::is_digest;

pub(super) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const CONFIG_TYPE: &str = "application/vnd.wasm.config.v0+json";
pub(super) const LAYER_TYPE: &str = "application/wasm";
/// The annotation with the text of a signature in minisign's format.
const SIGNATURE_ANNOTATION: &str = "millrace.signature.minisig";
/// Layers named in an error.
const TYPES_LISTED_MAX: usize = 4;
/// Characters of a media type in an error.
const TYPE_CHARS_MAX: usize = 80;

/// `sha256:` and the digest of the bytes.
pub(super) fn digest_of(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

/// What a manifest says about a module.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layer {
    pub(super) digest: String,
    pub(super) bytes: u64,
    pub(super) signature: Option<String>,
}

/// Finds the module in a manifest.
pub(super) fn layer_of(manifest: &[u8]) -> Result<Layer, Failure> {
    let refuse = |why: &str| {
        Failure::refused(format!(
            "the manifest is not of a WebAssembly component: {why}"
        ))
    };
    let manifest: Value = serde_json::from_slice(manifest).map_err(|_| refuse("it is not JSON"))?;
    if !manifest["manifests"].is_null() {
        return Err(refuse(
            "it is a list of manifests; name one of them by its digest",
        ));
    }
    let layers = items(&manifest["layers"]);
    let wasm: Vec<&Value> = layers
        .iter()
        .filter(|layer| layer["mediaType"] == LAYER_TYPE)
        .collect();
    let [layer] = wasm.as_slice() else {
        let types = layers.iter().take(TYPES_LISTED_MAX).map(|layer| {
            let text = layer["mediaType"]
                .as_str()
                .unwrap_or("a layer without a type");
            text.chars().take(TYPE_CHARS_MAX).collect::<String>()
        });
        let types = types.collect::<Vec<_>>().join(", ");
        let why = format!(
            "{} layers of {} have the type {LAYER_TYPE}, and one is needed ({types})",
            wasm.len(),
            layers.len()
        );
        return Err(refuse(&why));
    };
    let digest = layer["digest"].as_str().filter(|digest| is_digest(digest));
    let digest = digest.ok_or_else(|| refuse("its layer has no SHA-256 digest"))?;
    let bytes = layer["size"]
        .as_u64()
        .ok_or_else(|| refuse("its layer has no size"))?;
    let signature = manifest["annotations"][SIGNATURE_ANNOTATION].as_str();
    Ok(Layer {
        digest: digest.to_owned(),
        bytes,
        signature: signature.map(str::to_owned),
    })
}

/// The configuration and the manifest of a module. The same module always has the same.
pub(super) fn described(module: &Value, bytes: &[u8], created: &str) -> (Vec<u8>, Vec<u8>) {
    let layer = digest_of(bytes);
    let config = json!({
        "created": created,
        "architecture": "wasm",
        "os": "wasip2",
        "layerDigests": [layer],
        "component": {"exports": module["exports"], "imports": module["imports"]},
    });
    let config = config.to_string().into_bytes();
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": digest_of(&config), "size": config.len()},
        "layers": [{"mediaType": LAYER_TYPE, "digest": layer, "size": bytes.len()}],
    });
    if let Some(text) = module["signature"]["text"].as_str() {
        manifest["annotations"] = json!({ SIGNATURE_ANNOTATION: text });
    }
    (config, manifest.to_string().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_found_again_in_its_manifest() {
        let module = json!({"exports": ["a"], "imports": [], "signature": {"text": "four\nlines"}});
        let (config, manifest) = described(&module, b"bytes", "2026-11-29T00:00:00Z");
        let layer = layer_of(&manifest).expect("a layer");
        assert_eq!(layer.digest, digest_of(b"bytes"));
        assert_eq!(
            (layer.bytes, layer.signature.as_deref()),
            (5, Some("four\nlines"))
        );
        let read: Value = serde_json::from_slice(&manifest).expect("JSON");
        assert_eq!(read["config"]["digest"], digest_of(&config));
        assert_eq!(
            described(&module, b"bytes", "2026-11-29T00:00:00Z"),
            (config, manifest)
        );
    }

    #[test]
    fn what_is_no_module_is_refused() {
        let layer =
            |kind: &str, digest: &str| json!({"mediaType": kind, "digest": digest, "size": 3});
        let good = digest_of(b"abc");
        let wasm = layer(LAYER_TYPE, &good);
        assert!(layer_of(json!({"layers": [wasm]}).to_string().as_bytes()).is_ok());
        for (manifest, says) in [
            (json!([]), "0 layers"),
            (json!({"layers": []}), "0 layers"),
            (json!({"layers": [wasm, wasm]}), "2 layers"),
            (
                json!({"layers": [layer("application/vnd.oci.image.layer.v1.tar", &good)]}),
                "layer.v1.tar",
            ),
            (
                json!({"layers": [layer(LAYER_TYPE, "sha256:../..")]}),
                "digest",
            ),
            (
                json!({"layers": [{"mediaType": LAYER_TYPE, "digest": good, "size": -1}]}),
                "size",
            ),
            (json!({"manifests": []}), "list of manifests"),
        ] {
            let text = layer_of(manifest.to_string().as_bytes())
                .expect_err(says)
                .to_string();
            assert!(text.contains(says), "{text}");
        }
        assert!(layer_of(b"<html>").is_err());
    }
}
