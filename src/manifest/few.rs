//! A map that is mostly empty, and takes one word then: entries are in memory by the hundred thousand.

use std::{
    collections::{BTreeMap, btree_map},
    fmt,
    hash::{Hash, Hasher},
    ops::{Deref, DerefMut},
};

/// See the module. Used as the map that it stands for.
#[derive(Clone)]
#[expect(clippy::box_collection, reason = "a map takes three words, a box one")]
pub struct Few<K: 'static, V: 'static>(Option<Box<BTreeMap<K, V>>>);

impl<K, V> Few<K, V> {
    const NONE: &'static BTreeMap<K, V> = &BTreeMap::new();
}

impl<K, V> Default for Few<K, V> {
    fn default() -> Self {
        Self(None)
    }
}

impl<K, V> From<BTreeMap<K, V>> for Few<K, V> {
    fn from(map: BTreeMap<K, V>) -> Self {
        Self((!map.is_empty()).then(|| Box::new(map)))
    }
}

impl<K: Ord, V> FromIterator<(K, V)> for Few<K, V> {
    fn from_iter<T: IntoIterator<Item = (K, V)>>(pairs: T) -> Self {
        BTreeMap::from_iter(pairs).into()
    }
}

impl<K, V> Deref for Few<K, V> {
    type Target = BTreeMap<K, V>;

    fn deref(&self) -> &BTreeMap<K, V> {
        self.0.as_deref().unwrap_or(Self::NONE)
    }
}

impl<K, V> DerefMut for Few<K, V> {
    fn deref_mut(&mut self) -> &mut BTreeMap<K, V> {
        self.0.get_or_insert_default()
    }
}

impl<'a, K, V> IntoIterator for &'a Few<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = btree_map::Iter<'a, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<K: PartialEq, V: PartialEq> PartialEq for Few<K, V> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<K: Eq, V: Eq> Eq for Few<K, V> {}

impl<K: Hash, V: Hash> Hash for Few<K, V> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Few<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_became_empty_is_an_empty_one() {
        let mut few = Few::default();
        assert!(few.insert(1, 'a').is_none());
        assert_eq!(few, Few::from(BTreeMap::from([(1, 'a')])));
        assert_eq!(few.remove(&1), Some('a'));
        assert_eq!(few, Few::default());
        assert_eq!(size_of::<Few<u64, Vec<u8>>>(), size_of::<usize>());
    }
}
