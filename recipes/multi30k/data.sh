# shellcheck shell=bash
# Multi30k's task 1, test_2016_flickr: what every recipe on it fetches. A recipe has called `recipe NAME SRC TGT multi30k`.
URL=https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw

fetch_data() {
    local lang
    fetch_urls "$URL" {train,val,test_2016_flickr}.{de,en}.gz
    for lang in de en; do
        gzip -dc "raw/train.$lang.gz" >"raw/train.$lang"
        gzip -dc "raw/val.$lang.gz" >"raw/valid.$lang"
        gzip -dc "raw/test_2016_flickr.$lang.gz" >"raw/test.$lang"
    done
}
