//! Passwords of principals: who has the right one is let in, as long as it is the right one.

use millrace_broker::{Access, Caller, NewToken, PasswordText, ScramError, Unproved, scram_nonce};
use millrace_model::{PrincipalName, Rule, ScramHash, TokenName};

use crate::rig::Rig;

const CHOSEN: &str = "grain-and-water-2";

fn name(text: &str) -> PrincipalName {
    PrincipalName::parse(text).expect("a name")
}

fn rules(texts: &[&str]) -> Vec<Rule> {
    texts
        .iter()
        .map(|text| text.parse().expect("a rule"))
        .collect()
}

/// Principals of a broker, with `shop` among them, whose password is [`CHOSEN`].
async fn with_shop(rig: &Rig) -> Access {
    let access = rig.broker.session(Caller::host()).access().clone();
    let shop = name("shop");
    let set = access.set_principal(&shop, rules(&["producer on topic:in"]));
    set.await.expect("a principal");
    let chosen = PasswordText::chosen(CHOSEN.to_owned()).expect("a password");
    let set = access.set_password(&shop, Some(chosen)).await;
    assert!(
        set.expect("a password").text.is_none(),
        "who chose it knows it"
    );
    access
}

#[tokio::test]
async fn only_the_right_name_with_the_right_password_proves_anything() {
    let rig = Rig::start(1).await;
    let access = with_shop(&rig).await;
    // The second time it is remembered.
    for _ in 0..2 {
        let proved = access.prove_password("shop", CHOSEN).await.expect("proved");
        assert_eq!(proved.standing.principal(), Some(&name("shop")));
        assert!(!proved.ended.is_cancelled());
        for (name, password) in [
            ("shop", "grain-and-water-3"),
            ("shop", ""),
            ("shop", "wässrig"),
            ("shops", CHOSEN),
            ("", CHOSEN),
            ("../shop", CHOSEN),
        ] {
            let refused = access.prove_password(name, password).await;
            assert_eq!(
                refused.unwrap_err(),
                Unproved::Password,
                "{name} {password}"
            );
        }
    }
}

#[tokio::test]
async fn a_password_that_the_host_makes_is_told_once_and_ends_the_one_before() {
    let rig = Rig::start(1).await;
    let access = with_shop(&rig).await;
    let before = access.prove_password("shop", CHOSEN).await.expect("proved");
    let made = access
        .set_password(&name("shop"), None)
        .await
        .expect("made");
    let text = made.text.expect("a text");
    assert!(before.ended.is_cancelled());
    assert!(access.prove_password("shop", CHOSEN).await.is_err());
    let now = access.prove_password("shop", text.reveal()).await;
    let now = now.expect("proved");
    let stored =
        serde_json::to_string(&access.principal(&name("shop")).expect("it")).expect("JSON");
    assert!(
        stored.contains("SCRAM-SHA-512$") && !stored.contains(text.reveal()),
        "{stored}"
    );
    access
        .remove_password(&name("shop"))
        .await
        .expect("removed");
    assert!(now.ended.is_cancelled() && !access.has_password("shop"));
    assert!(access.prove_password("shop", text.reveal()).await.is_err());
}

#[tokio::test]
async fn what_was_proved_ends_when_the_rules_change() {
    let rig = Rig::start(1).await;
    let access = with_shop(&rig).await;
    let new = NewToken {
        name: TokenName::parse("one").expect("a name"),
        scope: None,
        expires_at: None,
    };
    let token = access.make_token(&name("shop"), new).await.expect("made");
    let by_token = access.prove(token.text.reveal()).expect("proved");
    let by_password = access.prove_password("shop", CHOSEN).await.expect("proved");
    let other = rules(&["viewer"]);
    access
        .set_principal(&name("shop"), other)
        .await
        .expect("changed");
    assert!(by_token.ended.is_cancelled());
    assert!(by_password.ended.is_cancelled());
    let again = access.prove_password("shop", CHOSEN).await.expect("proved");
    access
        .delete_principal(&name("shop"))
        .await
        .expect("deleted");
    assert!(again.ended.is_cancelled());
}

#[tokio::test]
async fn a_change_of_another_principal_ends_nothing() {
    let rig = Rig::start(1).await;
    let access = with_shop(&rig).await;
    let proved = access.prove_password("shop", CHOSEN).await.expect("proved");
    access
        .set_principal(&name("mill"), rules(&["viewer"]))
        .await
        .expect("made");
    access.set_password(&name("mill"), None).await.expect("set");
    assert!(!proved.ended.is_cancelled());
}

#[tokio::test]
async fn the_last_who_can_administer_by_a_password_keeps_it() {
    let rig = Rig::start(1).await;
    let access = with_shop(&rig).await;
    let root = name("root");
    access
        .set_principal(&root, rules(&["admin"]))
        .await
        .expect("made");
    access.set_password(&root, None).await.expect("set");
    assert!(access.remove_password(&root).await.is_err());
    assert!(access.has_password("root"));
}

#[tokio::test]
async fn a_stranger_and_a_wrong_password_look_the_same_in_an_exchange() {
    let rig = Rig::start(1).await;
    let access = with_shop(&rig).await;
    for hash in ScramHash::ALL {
        let challenged = |name: &str| {
            let first = format!("n,,n={name},r=abc");
            let begun = access.begin_scram(hash, first.as_bytes(), "def");
            begun.expect("a challenge")
        };
        let salt = |message: &str| message.split(",s=").nth(1).expect("a salt").to_owned();
        for name in ["shop", "stranger", "no name at all"] {
            let first = salt(challenged(name).message());
            assert_eq!(first, salt(challenged(name).message()), "{name}");
            assert_eq!(first.len(), salt(challenged("shop").message()).len());
            let proof = "A".repeat(hash.bytes() / 3 * 4)
                + if hash.bytes() % 3 == 1 {
                    "AA=="
                } else {
                    "AAA="
                };
            let last = format!("c=biws,r=abcdef,p={proof}");
            let refused = challenged(name).finish(last.as_bytes());
            assert_eq!(refused.err(), Some(ScramError::Proof), "{name}");
        }
    }
    assert!(scram_nonce().is_ok());
}

#[tokio::test]
async fn while_others_guess_a_password_that_was_proved_still_counts() {
    let rig = Rig::start(1).await;
    let access = with_shop(&rig).await;
    access.prove_password("shop", CHOSEN).await.expect("proved");
    // More than can be checked in the time that they wait.
    let guesses = (0..3_000).map(|at| {
        let access = access.clone();
        tokio::spawn(async move { access.prove_password("shop", &format!("guess-{at}")).await })
    });
    let guesses: Vec<_> = guesses.collect();
    tokio::task::yield_now().await;
    let proved = access.prove_password("shop", CHOSEN).await;
    assert!(proved.is_ok());
    let mut refused = Vec::new();
    for guess in guesses {
        refused.push(guess.await.expect("it ends").expect_err("a guess"));
    }
    assert!(refused.contains(&Unproved::Busy) && refused.contains(&Unproved::Password));
}
