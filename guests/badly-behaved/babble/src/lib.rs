//! Gives malformed answers, chosen by the value of any message in the batch; passes everything else
//! through. It writes columns itself, because the SDK gives only valid answers.

use millrace_guest::{Answer, Batch, Columns, Detail, NONE, Unavailable, processor};

processor!(columns process);

fn process(columns: Columns) -> Result<Answer, Unavailable> {
    let batch = Batch::new(columns);
    let mut answer = Answer {
        outcomes: vec![1; batch.len()],
        sources: (0..batch.len() as u32).collect(),
        ..Answer::default()
    };
    for message in batch.messages() {
        spoil(&mut answer, message.value().unwrap_or_default());
    }
    Ok(answer)
}

fn spoil(answer: &mut Answer, how: &[u8]) {
    let outputs = answer.sources.len();
    match how {
        b"few-outcomes" => drop(answer.outcomes.pop()),
        b"many-outcomes" => answer.outcomes.push(0),
        b"bad-outcome" => answer.outcomes[0] = 9,
        b"bad-source" => answer.sources[outputs - 1] = outputs as u32,
        b"unsorted-sources" => answer.sources.insert(0, outputs as u32 - 1),
        b"source-not-emitted" => answer.outcomes[outputs - 1] = 0,
        b"bad-span" => answer.values = [1 << 30, 1 << 30].repeat(outputs),
        b"overflowing-span" => answer.values = [NONE, NONE - 1].repeat(outputs),
        b"odd-spans" => answer.values = vec![0; outputs * 2 + 1],
        b"bad-topic" => answer.topics = vec![7; outputs],
        b"bad-topic-name" => {
            answer.topic_names = vec!["no such/topic\0".to_owned()];
            answer.topics = vec![0; outputs];
        }
        b"bad-partition" => answer.partitions = vec![NONE - 1; outputs],
        b"odd-times" => answer.times = vec![0; outputs],
        b"bad-time" => answer.times = vec![u64::MAX - 1; outputs * 2],
        b"bad-headers" => answer.header_ends = vec![3; outputs],
        b"bad-detail" => answer.details.push(detail(outputs as u32)),
        b"no-detail" => answer.outcomes[0] = 2,
        b"huge" => {
            answer.data = vec![b'x'; 20 << 20];
            answer.values = [0, answer.data.len() as u32].repeat(outputs);
        }
        b"many-outputs" => answer.sources = vec![0; 1_000_000],
        _ => {}
    }
}

fn detail(message: u32) -> Detail {
    Detail {
        message,
        after_ms: None,
        class: "babble".to_owned(),
        reason: "why not".to_owned(),
    }
}
