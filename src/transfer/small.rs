//! Answers to batches: taken apart, verified, and stored together.

use tokio::sync::Semaphore;

use super::scheduler::Answer;
use crate::{
    content::{Object, VerifiedRange, verify_range},
    net::{NetError, proto::BlockAnswer},
    store::Store,
};

/// Verifies and stores what came. Says for each content whether it came; if any doesn't verify, none counts.
pub(super) async fn settle(
    store: Store,
    verifiers: &Semaphore,
    objects: Vec<Object>,
    result: Result<BlockAnswer, NetError>,
) -> Result<Vec<bool>, Answer> {
    let (here, data) = match result {
        Ok(BlockAnswer::Batch { here, data }) => (here, data),
        Ok(BlockAnswer::Busy) => return Err(Answer::Busy),
        Ok(_) => return Err(Answer::Bad("answered another question".to_owned())),
        Err(NetError::TimedOut { .. }) => return Err(Answer::TimedOut),
        Err(error) => return Err(Answer::Failed(error.to_string())),
    };
    let Ok(_permit) = verifiers.acquire().await else {
        return Err(Answer::NotStored("the mount is stopping".to_owned()));
    };
    let work = tokio::task::spawn_blocking(move || {
        let verified = verify(&objects, &here, &data).map_err(Answer::Bad)?;
        let stored = store.insert_all(&verified);
        stored.map_err(|error| Answer::NotStored(error.to_string()))?;
        Ok(here)
    });
    let failed = |error: tokio::task::JoinError| Err(Answer::NotStored(error.to_string()));
    work.await.unwrap_or_else(failed)
}

/// The contents that came, each proven by its hash; why not, otherwise.
fn verify<'a>(
    objects: &[Object],
    here: &[bool],
    data: &'a [u8],
) -> Result<Vec<VerifiedRange<'a>>, String> {
    if here.len() != objects.len() {
        return Err("answered another number of contents than was asked for".to_owned());
    }
    let mut verified = Vec::with_capacity(objects.len());
    let mut rest = data;
    for (object, _) in objects.iter().zip(here).filter(|(_, here)| **here) {
        let length = usize::try_from(object.size).unwrap_or(usize::MAX);
        let Some((content, after)) = rest.split_at_checked(length) else {
            return Err("sent fewer bytes than its contents have".to_owned());
        };
        rest = after;
        let range = verify_range(*object, 0..1, content).map_err(|error| error.to_string())?;
        verified.push(range);
    }
    match rest.is_empty() {
        true => Ok(verified),
        false => Err("sent more bytes than its contents have".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::hash_bytes;

    fn object(content: &[u8]) -> Object {
        Object {
            content: hash_bytes(content),
            size: content.len() as u64,
        }
    }

    #[test]
    fn contents_are_taken_apart_in_the_order_asked() {
        let objects = [object(b"one"), object(b"two"), object(b"three")];
        let verified = verify(&objects, &[true, false, true], b"onethree").unwrap();
        let datas: Vec<Vec<u8>> = verified.iter().map(|range| range.data.concat()).collect();
        assert_eq!(datas, [&b"one"[..], b"three"]);
        assert!(verify(&objects, &[false; 3], b"").unwrap().is_empty());
    }

    #[test]
    fn wrong_short_long_and_miscounted_answers_are_refused_whole() {
        let objects = [object(b"one"), object(b"two")];
        for (here, data) in [
            (&[true, true][..], &b"onetwx"[..]),
            (&[true, true], b"twoone"),
            (&[true, true], b"onetw"),
            (&[true, true], b"onetwo!"),
            (&[true], b"one"),
            (&[true, true, true], b"onetwoone"),
            (&[false, false], b"x"),
        ] {
            assert!(verify(&objects, here, data).is_err());
        }
    }
}
